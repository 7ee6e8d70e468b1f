"""Attention, MLP and adaptive layer norm; the only file that imports the kernels.

B batch, T tokens, L tokens of a prompt, D width, h heads, d head dimension.
"""

from __future__ import annotations

import torch
from mmdit_kernels import attention, attention_packed, gated_residual_layernorm_modulate, layernorm_modulate
from torch import Tensor, nn

__all__ = [
    "MLP",
    "QK_NORMS",
    "AdaLayerNorm",
    "CrossAttention",
    "SelfAttention",
    "gated_residual_layernorm_modulate",
    "layernorm_modulate",
    "matmul_dtype",
    "reset_linears",
    "zero_linear",
]

Rope = tuple[Tensor, Tensor]


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
        b = len(x)
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, T, d)
        kv = self.kv(tokens.to(x.dtype)).expand(b, -1, -1).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # (B, h, L, d) each
        q_weight, k_weight = self.qk_norm()
        key_mask = None if token_mask is None else token_mask.expand(b, -1)
        y = attention(q, k, v, q_weight=q_weight, k_weight=k_weight, key_mask=key_mask)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, T, D)


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
