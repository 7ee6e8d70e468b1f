"""The public adaptive layer norms: arguments checked, backend chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdit_kernels.adaln.jvp import gated_residual_layernorm_modulate_of_duals, layernorm_modulate_of_duals
from mmdit_kernels.adaln.reference import gated_residual_layernorm_modulate_torch, layernorm_modulate_torch
from mmdit_kernels.adaln.registration import (
    find_problem,
    gated_residual_layernorm_modulate_forward,
    layernorm_modulate_forward,
)
from mmdit_kernels.dispatch import use_triton


def _check(op: str, x: Tensor, vectors: tuple[tuple[str, Tensor], ...], out_dtype: torch.dtype | None) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"x of {op} must be floating (B, T, D); got {x.dtype} {tuple(x.shape)}")
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise ValueError(f"out_dtype of {op} must be a floating dtype; got {out_dtype}")
    expected = (x.shape[0], x.shape[2])
    for name, vector in vectors:
        if vector.shape != expected or not vector.is_floating_point():
            raise ValueError(
                f"{name} of {op} must be floating (B, D) = {expected}; got {vector.dtype} {tuple(vector.shape)}"
            )


def _promote(*dtypes: torch.dtype) -> torch.dtype:
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def _out_dtype(h_dtype: torch.dtype, device_type: str, shift: Tensor, scale: Tensor) -> torch.dtype:
    """Return the dtype PyTorch's own operators give; under CUDA's autocast their layer norm returns float32."""
    if device_type == "cuda" and torch.is_autocast_enabled("cuda"):
        h_dtype = torch.float32
    return _promote(h_dtype, shift.dtype, scale.dtype)


def layernorm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, backend: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """LayerNorm(x) (1 + scale) + shift, with no affine in the norm (DiT's adaLN, arXiv 2212.09748, section 3.2).

    Args:
        x: (B, T, D).
        shift: (B, D).
        scale: (B, D).
        eps: added to the variance.
        backend: "auto", "triton" or "torch".
        out_dtype: dtype of the result, which is rounded once, without being written in a wider one first.

    Returns:
        (B, T, D) in ``out_dtype``. If that is None, dtypes promote as in PyTorch, and LayerNorm gives float32 where
        autocast makes PyTorch's do so.

    Raises:
        ValueError: shapes that do not fit together; backend "triton" where it cannot run.
    """
    _check("layernorm_modulate", x, (("shift", shift), ("scale", scale)), out_dtype)
    if use_triton("layernorm_modulate", backend, x.device, lambda: find_problem(x, shift, scale, out_dtype=out_dtype)):
        out_dtype = out_dtype or _out_dtype(x.dtype, x.device.type, shift, scale)
        dual = layernorm_modulate_of_duals(x, shift, scale, eps, out_dtype)
        if dual is not None:
            return dual
        return layernorm_modulate_forward(x, shift, scale, eps, out_dtype)[0]
    out = layernorm_modulate_torch(x, shift, scale, eps)
    return out.to(out_dtype or out.dtype)


def gated_residual_layernorm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, backend: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h = x + gate y, then LayerNorm(h) (1 + scale) + shift: what stands between two sublayers of an adaLN-zero block.

    Args:
        x: (B, T, D), the residual stream.
        y: (B, T, D), the sublayer's output.
        gate: (B, D).
        shift: (B, D).
        scale: (B, D).
        eps: added to the variance.
        backend: "auto", "triton" or "torch".
        out_dtype: dtype of the norm, not of h, as in ``layernorm_modulate``.

    Returns:
        h and the modulated norm of h, both (B, T, D); dtypes promote as in PyTorch, and without ``out_dtype`` LayerNorm
        gives float32 where autocast makes PyTorch's do so.

    Raises:
        ValueError: shapes that do not fit together; backend "triton" where it cannot run.
    """
    op = "gated_residual_layernorm_modulate"
    _check(op, x, (("gate", gate), ("shift", shift), ("scale", scale)), out_dtype)
    if y.shape != x.shape or not y.is_floating_point():
        raise ValueError(
            f"y of {op} must be floating with the shape of x, {tuple(x.shape)}; got {y.dtype} {tuple(y.shape)}"
        )
    if use_triton(op, backend, x.device, lambda: find_problem(x, y, gate, shift, scale, out_dtype=out_dtype)):
        h_dtype = _promote(x.dtype, gate.dtype, y.dtype)
        out_dtype = out_dtype or _out_dtype(h_dtype, x.device.type, shift, scale)
        duals = gated_residual_layernorm_modulate_of_duals(x, y, gate, shift, scale, eps, h_dtype, out_dtype)
        if duals is not None:
            return duals
        h, out, _ = gated_residual_layernorm_modulate_forward(x, y, gate, shift, scale, eps, h_dtype, out_dtype)
        return h, out
    h, out = gated_residual_layernorm_modulate_torch(x, y, gate, shift, scale, eps)
    return h, out.to(out_dtype or out.dtype)


def residual_is_fused(x: Tensor, *, backend: str = "auto") -> bool:
    """Tell whether one kernel does the sum and the norm of ``gated_residual_layernorm_modulate`` for tokens x (B, T, D).

    Where it does not, who has the choice gains nothing from doing both at once.
    """
    return use_triton("gated_residual_layernorm_modulate", backend, x.device, lambda: find_problem(x))
