"""Adaptive layer norm in plain PyTorch: naive references that keep the dtype (use float64), and the torch backend.

B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layernorm_modulate_reference(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute LayerNorm(x) (1 + scale) + shift step by step, in the dtype of the inputs."""
    centred = x - x.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return normed * (1 + scale[:, None]) + shift[:, None]  # (B, T, D)


def gated_residual_layernorm_modulate_reference(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Compute h = x + gate y and LayerNorm(h) (1 + scale) + shift step by step, in the dtype of the inputs."""
    h = x + gate[:, None] * y
    return h, layernorm_modulate_reference(h, shift, scale, eps)


def layernorm_modulate_torch(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute LayerNorm(x) (1 + scale) + shift with PyTorch's fused layer norm."""
    return torch.addcmul(shift[:, None], F.layer_norm(x, (x.shape[-1],), eps=eps), 1 + scale[:, None])


def gated_residual_layernorm_modulate_torch(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Compute h = x + gate y and LayerNorm(h) (1 + scale) + shift with PyTorch's fused operators."""
    h = torch.addcmul(x, gate[:, None], y)
    return h, layernorm_modulate_torch(h, shift, scale, eps)
