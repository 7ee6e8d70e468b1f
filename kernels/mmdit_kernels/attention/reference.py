"""Attention in plain PyTorch: a naive reference that keeps the dtype (use float64), and the torch backend.

B batch, H heads, N queries, S keys, d head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmdit_kernels.forward_mode import forward_mode

RMS_EPS = 1e-6
Rope = tuple[Tensor, Tensor]


def rotate_pairs(x: Tensor) -> Tensor:
    """Map pairs (a, b) at (2i, 2i + 1) to (-b, a)."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate pairs (2i, 2i + 1) of x (B, H, N, d); cos and sin (N, d) or (B, N, d) (arXiv 2104.09864, equation 34)."""
    cos, sin = (table[:, None] if table.dim() == 3 else table for table in rope)
    return x * cos + rotate_pairs(x) * sin


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    rope: Rope | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute attention step by step, in the dtype of the inputs; arguments as in ``attention``."""
    if q_weight is not None:
        q = q * torch.rsqrt(q.square().mean(-1, keepdim=True) + RMS_EPS) * q_weight
    if k_weight is not None:
        k = k * torch.rsqrt(k.square().mean(-1, keepdim=True) + RMS_EPS) * k_weight
    if rope is not None:
        q, k = apply_rope(q, rope), apply_rope(k, rope)
    logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)  # (B, H, N, S)
    if key_mask is None:
        return logits.softmax(-1) @ v
    attend = key_mask[:, None, None, :]
    maximum = logits.masked_fill(~attend, -torch.inf).amax(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).min)
    weights = torch.exp(torch.where(attend, logits - maximum, -torch.inf))  # (B, H, N, S)
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1, total) @ v


def _rms_norm(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), (x.shape[-1],), weight.to(wide), RMS_EPS)


def norm_and_rotate(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, rope: Rope | None
) -> tuple[Tensor, Tensor]:
    """Return q and k after norm and rope, computed in float32 or wider, in the dtype of q."""
    dtype = q.dtype
    q, k = _rms_norm(q, q_weight), _rms_norm(k, k_weight)
    if rope is not None:
        wide = torch.promote_types(dtype, torch.float32)
        q, k = apply_rope(q.to(wide), rope), apply_rope(k.to(wide), rope)
    return q.to(dtype), k.to(dtype)


def attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    rope: Rope | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute attention with PyTorch's fused operator, norm and rope in float32 or wider.

    In forward mode it is PyTorch's chain of products and softmax, since the fused ones have no such derivative.
    """
    if forward_mode():
        with sdpa_kernel(SDPBackend.MATH):
            return _attention_torch(q, k, v, q_weight, k_weight, rope, key_mask, scale)
    return _attention_torch(q, k, v, q_weight, k_weight, rope, key_mask, scale)


def _attention_torch(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, rope: Rope | None,
    key_mask: Tensor | None, scale: float | None,
) -> Tensor:  # fmt: skip
    q, k = norm_and_rotate(q, k, q_weight, k_weight, rope)
    if key_mask is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    # PyTorch's backends disagree on a row with no key to attend to: let it see every key, then drop the result.
    any_key = key_mask.any(-1, keepdim=True)  # (B, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=(key_mask | ~any_key)[:, None, None, :], scale=scale)
    return torch.where(any_key[:, None, None], out, 0)
