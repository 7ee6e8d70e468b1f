"""The adaptive layer norms as torch.library operators: implementation on Triton, shapes for tracing, and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdit_kernels.adaln.configs import MAXIMUM_WIDTH
from mmdit_kernels.adaln.launches import backward_launch, forward_launch
from mmdit_kernels.forward_mode import refuse_tangent_of_gradient

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def find_problem(*tensors: Tensor, out_dtype: torch.dtype | None = None) -> str | None:
    """Return why the kernels do not take these arguments, x first, or None."""
    x = tensors[0]
    if out_dtype is not None and out_dtype not in DTYPES:
        return f"out_dtype {out_dtype} is not float32, float16 or bfloat16"
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"dtype {tensor.dtype} is not float32, float16 or bfloat16"
        if tensor.device != x.device:
            return "the tensors are on different devices"
    if x.shape[-1] > MAXIMUM_WIDTH:
        return f"width {x.shape[-1]} is over {MAXIMUM_WIDTH}"
    return f"a size is zero in x {tuple(x.shape)}" if x.numel() == 0 else None


@torch.library.custom_op("mmdit_kernels::layernorm_modulate", mutates_args=())
def layernorm_modulate_forward(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the output and mean and 1 / deviation of each token (2, B, T)."""
    launch, _, out, stats = forward_launch(x, None, None, shift, scale, eps, x.dtype, out_dtype)
    launch.run(x)
    return out, stats


@layernorm_modulate_forward.register_fake
def _(x, shift, scale, eps, out_dtype):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=out_dtype), x.new_empty((2, *x.shape[:2]), dtype=torch.float32)


@torch.library.custom_op("mmdit_kernels::gated_residual_layernorm_modulate", mutates_args=())
def gated_residual_layernorm_modulate_forward(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float, h_dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return h, the output, and mean and 1 / deviation of each token (2, B, T)."""
    launch, h, out, stats = forward_launch(x, y, gate, shift, scale, eps, h_dtype, out_dtype)
    assert h is not None
    launch.run(x)
    return h, out, stats


@gated_residual_layernorm_modulate_forward.register_fake
def _(x, y, gate, shift, scale, eps, h_dtype, out_dtype):  # type: ignore[no-untyped-def]
    h, out = (x.new_empty(x.shape, dtype=dtype) for dtype in (h_dtype, out_dtype))
    return h, out, x.new_empty((2, *x.shape[:2]), dtype=torch.float32)


@torch.library.custom_op("mmdit_kernels::layernorm_modulate_backward", mutates_args=())
def layernorm_modulate_backward(d_out: Tensor, x: Tensor, scale: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
    """Return d_x, and d_shift and d_scale (2, B, D) in float32."""
    launch, gradients = backward_launch(x, d_out, None, None, None, scale, stats, x.dtype)
    launch.run(x)
    return gradients.x, gradients.vectors.sum(2)


@layernorm_modulate_backward.register_fake
def _(d_out, x, scale, stats):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty((2, x.shape[0], x.shape[2]), dtype=torch.float32)


@torch.library.custom_op("mmdit_kernels::gated_residual_layernorm_modulate_backward", mutates_args=())
def gated_residual_layernorm_modulate_backward(
    d_h: Tensor | None, d_out: Tensor, h: Tensor, y: Tensor, gate: Tensor, scale: Tensor, stats: Tensor,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return d_x, d_y, and d_shift, d_scale and d_gate (3, B, D) in float32."""
    launch, gradients = backward_launch(h, d_out, d_h, y, gate, scale, stats, x_dtype)
    assert gradients.y is not None
    launch.run(h)
    return gradients.x, gradients.y, gradients.vectors.sum(2)


@gated_residual_layernorm_modulate_backward.register_fake
def _(d_h, d_out, h, y, gate, scale, stats, x_dtype):  # type: ignore[no-untyped-def]
    vectors = h.new_empty((3, h.shape[0], h.shape[2]), dtype=torch.float32)
    return h.new_empty(h.shape, dtype=x_dtype), h.new_empty(h.shape, dtype=y.dtype), vectors


def _setup_plain(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, shift, scale, _, _ = inputs
    ctx.save_for_backward(x, scale, output[1])
    ctx.shift_dtype = shift.dtype
    ctx.set_materialize_grads(False)


def _backward_plain(ctx: Any, d_out: Tensor | None, d_stats: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return (None,) * 5
    refuse_tangent_of_gradient("layernorm_modulate", (d_out,))
    x, scale, stats = ctx.saved_tensors
    d_x, vectors = layernorm_modulate_backward(d_out, x, scale, stats)
    return d_x, vectors[0].to(ctx.shift_dtype), vectors[1].to(scale.dtype), None, None


def _setup_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, gate, shift, scale = inputs[:5]
    h, out, stats = output
    ctx.save_for_backward(h, y, gate, scale, stats)
    ctx.x_dtype, ctx.shift_dtype, ctx.out_dtype = x.dtype, shift.dtype, out.dtype
    ctx.set_materialize_grads(False)


def _backward_gated(
    ctx: Any, d_h: Tensor | None, d_out: Tensor | None, d_stats: Tensor | None
) -> tuple[Tensor | None, ...]:
    if d_h is None and d_out is None:
        return (None,) * 8
    refuse_tangent_of_gradient("gated_residual_layernorm_modulate", (d_h, d_out))
    h, y, gate, scale, stats = ctx.saved_tensors
    if d_out is None:
        d_out = torch.zeros_like(h, dtype=ctx.out_dtype)
    d_x, d_y, vectors = gated_residual_layernorm_modulate_backward(d_h, d_out, h, y, gate, scale, stats, ctx.x_dtype)
    d_shift, d_scale, d_gate = vectors.unbind()
    return d_x, d_y, d_gate.to(gate.dtype), d_shift.to(ctx.shift_dtype), d_scale.to(scale.dtype), None, None, None


layernorm_modulate_forward.register_autograd(_backward_plain, setup_context=_setup_plain)
gated_residual_layernorm_modulate_forward.register_autograd(_backward_gated, setup_context=_setup_gated)
