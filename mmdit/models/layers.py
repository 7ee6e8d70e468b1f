"""Attention, MLP and adaptive layer norm; the only file that imports the kernels.

B batch, T tokens, L tokens of a prompt, D width, h heads, d head dimension.
"""

from __future__ import annotations

import os

import torch
from mmdit_kernels import attention, attention_packed, gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.adaln.op import residual_is_fused
from mmdit_kernels.attention.reference import norm_and_rotate
from mmdit_kernels.dispatch import BACKENDS, ENVIRONMENT_VARIABLE, default_backend, device_problem
from torch import Tensor, nn

from mmdit.errors import UserError, unknown_name

__all__ = [
    "MLP",
    "QK_NORMS",
    "AdaLayerNorm",
    "CrossAttention",
    "JointAttention",
    "SelfAttention",
    "check_kernels",
    "gated_residual_layernorm_modulate",
    "layernorm_modulate",
    "matmul_dtype",
    "reset_linears",
    "residual_is_fused",
    "zero_linear",
]

Rope = tuple[Tensor, Tensor]


def check_kernels(device: torch.device) -> None:
    """Raise UserError where ``MMDIT_KERNELS`` names no backend, or "triton", which can't run on ``device``."""
    name = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if name and name not in BACKENDS:
        raise unknown_name(f"value of the environment variable {ENVIRONMENT_VARIABLE}", name, BACKENDS)
    problem = device_problem(device.type, device.index)
    if problem is not None and default_backend() == "triton":
        raise UserError(f"the environment variable {ENVIRONMENT_VARIABLE} is 'triton': {problem}; give auto or torch")


class NoQKNorm(nn.Module):
    """q and k as they are (DiT, SiT, MMGen)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()

    def forward(self) -> tuple[None, None]:
        """No weights for the fused attention."""
        return None, None


class RMSQKNorm(nn.Module):
    """RMS norm of q and k over the head dimension: logits stay bounded in half precision (arXiv 2302.05442)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.q_weight = nn.Parameter(torch.ones(head_dim))
        self.k_weight = nn.Parameter(torch.ones(head_dim))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The weights for the fused attention, through a call so that hooks that offload weights see it."""
        return self.q_weight, self.k_weight


QK_NORMS: dict[str | None, type[NoQKNorm] | type[RMSQKNorm]] = {None: NoQKNorm, "rms_norm": RMSQKNorm}


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, T, D); ``rope`` is (cos, sin), each (T, d), or None."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: str | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.qk_norm = QK_NORMS[qk_norm](hidden_size // num_heads)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        b, t, _ = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.num_heads, -1)  # (B, T, 3, h, d)
        q_weight, k_weight = self.qk_norm()
        y = attention_packed(qkv, q_weight=q_weight, k_weight=k_weight, rope=rope)  # (B, h, T, d)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, T, D)


class CrossAttention(nn.Module):
    """Multi-head attention from x (B, T, D) to the tokens of a prompt.

    The last layer has no bias: a sample without tokens to attend to gets exactly zero, whatever the weights.
    """

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: str | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.qk_norm = QK_NORMS[qk_norm](hidden_size // num_heads)
        self.proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """x (B, T, D), tokens (B, L, D) or (1, L, D), token_mask (B, L) bool, True = attend -> (B, T, D)."""
        q, k, v = self._heads(x, tokens)
        q_weight, k_weight = self.qk_norm()
        key_mask = None if token_mask is None else token_mask.expand(x.shape[0], -1)
        y = attention(q, k, v, q_weight=q_weight, k_weight=k_weight, key_mask=key_mask)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, T, D)

    def map(self, x: Tensor, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """How much x attends to each token, as ``forward`` takes them: (B, T, L)."""
        q, k, _ = self._heads(x, tokens)
        q_weight, k_weight = self.qk_norm()
        q, k = norm_and_rotate(q, k, q_weight, k_weight, None)
        return attention_map(q, k, None if token_mask is None else token_mask.expand(x.shape[0], -1))

    def _heads(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, T, d)
        kv = self.kv(tokens.to(x.dtype)).expand(x.shape[0], -1, -1).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # (B, h, L, d) each
        return q, k, v


class JointAttention(SelfAttention):
    """Self-attention in which x (B, T, D) also attends to the tokens of a prompt: one sequence, one softmax.

    Each head has a gate g between what it reads of x alone and of both: y = y_alone + g (y_both - y_alone). With g = 0, and
    for a sample without tokens to attend to whatever g is, it is ``SelfAttention``, bit for bit; g = 1 is joint attention
    as in MM-DiT (arXiv 2403.03206). Tokens of a prompt have no place in the image: ``rope`` does not turn them.
    """

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: str | None = None) -> None:
        super().__init__(hidden_size, num_heads, qk_norm)
        self.prompt_kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.gate = nn.Parameter(torch.ones(num_heads))

    def forward(
        self, x: Tensor, rope: Rope | None = None, tokens: Tensor | None = None, token_mask: Tensor | None = None
    ) -> Tensor:
        """x (B, T, D), tokens (B, L, D) or (1, L, D), token_mask (B, L) bool, True = attend -> (B, T, D)."""
        if tokens is None or tokens.shape[1] == 0:
            return super().forward(x, rope)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, h, d)
        q_weight, k_weight = self.qk_norm()
        alone = attention_packed(qkv, q_weight=q_weight, k_weight=k_weight, rope=rope)  # (B, h, T, d)
        q, k, v, key_mask = self._sequence(qkv, rope, tokens, token_mask)
        both = attention(q, k, v, key_mask=key_mask)  # (B, h, T, d)
        any_token = key_mask[:, x.shape[1] :].any(1)  # (B,)
        gate = torch.where(any_token[:, None], self.gate, 0.0).to(alone.dtype)  # (B, h)
        y = alone + gate[:, :, None, None] * (both - alone)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, T, D)

    def map(self, x: Tensor, rope: Rope | None, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """How much x attends to each token of the prompt, the gate aside: (B, T, L). The rest of the softmax is on x."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, _, key_mask = self._sequence(qkv, rope, tokens, token_mask)
        return attention_map(q, k, key_mask)[..., x.shape[1] :]

    def _sequence(
        self, qkv: Tensor, rope: Rope | None, tokens: Tensor, token_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q (B, h, T, d), k and v (B, h, T + L, d) of image and prompt, normed and rotated, and the mask (B, T + L)."""
        b, t = qkv.shape[:2]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        prompt = self.prompt_kv(tokens.to(qkv.dtype)).expand(b, -1, -1).unflatten(-1, (2, self.num_heads, -1))
        prompt_k, prompt_v = prompt.permute(2, 0, 3, 1, 4)  # (B, h, L, d) each
        q_weight, k_weight = self.qk_norm()
        q, k = norm_and_rotate(q, k, q_weight, k_weight, rope)
        _, prompt_k = norm_and_rotate(q, prompt_k, None, k_weight, None)
        key_mask = torch.ones(b, t + tokens.shape[1], dtype=torch.bool, device=qkv.device)
        if token_mask is not None:
            key_mask[:, t:] = token_mask
        return q, torch.cat([k, prompt_k], 2), torch.cat([v, prompt_v], 2), key_mask


def attention_map(q: Tensor, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Mean over the heads of softmax(q kᵀ / √d): q (B, h, N, d), k (B, h, S, d), key_mask (B, S) -> (B, N, S).

    The fused attention never holds it. In float32 or wider; 0 at masked keys, also where all are masked.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        logits = q.to(wide) @ k.to(wide).transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, h, N, S)
        if key_mask is None:
            return logits.softmax(-1).mean(1)
        logits = logits.masked_fill(~key_mask[:, None, None], torch.finfo(wide).min)
        return logits.softmax(-1).mean(1) * key_mask[:, None]


class MLP(nn.Module):
    """Linear, GELU (tanh approximation), linear."""

    def __init__(self, hidden_size: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, int(hidden_size * mlp_ratio))
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(int(hidden_size * mlp_ratio), hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return self.fc2(self.act(self.fc1(x)))


def reset_linears(module: nn.Module) -> None:
    """DiT's initialisation of every linear layer inside: xavier-uniform weights, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero_linear(layer: nn.Module) -> None:
    """Let a linear layer begin as zero."""
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def matmul_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast gives the next linear layer, None without autocast.

    A norm rounds to it at once, instead of writing float32 that the layer would cast.
    """
    device_type = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):  # autocast leaves float64 alone
        return None
    return torch.get_autocast_dtype(device_type)


class AdaLayerNorm(nn.Module):
    """LayerNorm(x) (1 + scale(c)) + shift(c), with no affine in the norm (DiT's final layer)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, T, D), c (B, D) -> (B, T, D)."""
        shift, scale = self.modulation(c).chunk(2, dim=-1)  # (B, D) each
        return layernorm_modulate(x, shift, scale, out_dtype=matmul_dtype(x))

    def reset_parameters(self) -> None:
        """Begin as a plain LayerNorm."""
        zero_linear(self.modulation[-1])
