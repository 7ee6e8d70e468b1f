"""Transformer blocks, chosen by name from ``BLOCKS``."""

from __future__ import annotations

from torch import Tensor, nn

from mmdit.models.layers import (
    MLP,
    Rope,
    SelfAttention,
    gated_residual_layernorm_modulate,
    layernorm_modulate,
    matmul_dtype,
)


class DiTBlock(nn.Module):
    """adaLN-zero block (DiT, arXiv 2212.09748, section 3.2): x (B, T, D), conditioning vector c (B, D)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, qk_norm: str | None = None) -> None:
        super().__init__()
        self.attn = SelfAttention(hidden_size, num_heads, qk_norm)
        self.mlp = MLP(hidden_size, mlp_ratio)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor, rope: Rope | None = None) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.modulation(c).chunk(6, dim=-1)
        dtype = matmul_dtype(x)
        y = self.attn(layernorm_modulate(x, shift_attn, scale_attn, out_dtype=dtype), rope)
        x, y = gated_residual_layernorm_modulate(x, y, gate_attn, shift_mlp, scale_mlp, out_dtype=dtype)
        return x + gate_mlp[:, None] * self.mlp(y)  # (B, T, D)


BLOCKS: dict[str, type[DiTBlock]] = {"dit": DiTBlock}
