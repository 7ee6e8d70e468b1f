"""Adaptive layer norms with their derivative along a direction: launch, operators, the way in and out of dual tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mmdit_kernels.adaln.configs import column_parts, key
from mmdit_kernels.adaln.launches import _aligned, _strides
from mmdit_kernels.adaln.registration import gated_residual_layernorm_modulate_backward, layernorm_modulate_backward
from mmdit_kernels.forward_mode import refuse_reverse_mode_of_duals, split
from mmdit_kernels.launch import Launch, all_registers
from mmdit_kernels.tuning import target_of, tuned

PLAIN, GATED = "layernorm_modulate", "gated_residual_layernorm_modulate"


def select(
    target: str, stream: torch.dtype, other: torch.dtype, width: int, tokens: int, device: torch.device
) -> tuple[int, int]:
    """Return tokens at a time and warps: measured ones, or those of the table."""
    found = tuned(key("jvp", stream, other, width, tokens), device)
    if found is not None:
        return found[0], found[1]
    return (16, 4) if target == "interpreter" else shipped(target, width)


def shipped(target: str, width: int) -> tuple[int, int]:
    """Return the tiles of the table: eight elements of each tensor's main part in a thread, 16 bytes in half precision.

    Twice as many on sm_90 up to D = 2048: at 1152 an H200 takes 24% less time so (benchmarks/results/h200.csv).
    """
    main, _ = column_parts(width)
    rows = max(1, 1024 // main)
    threads, limit = (64, 16) if target.startswith("gfx") else (32, 32)
    warps, elements = (2, 16) if target == "sm_90" and main <= 1024 else (4, 8)
    while warps * threads * elements < rows * main and warps < limit:
        warps *= 2
    return rows, warps


def _tangent(tangent: Tensor | None, primal: Tensor) -> Tensor:
    """Return a tangent whose last dimension is dense; None is one row of zeros that every row is."""
    if tangent is None:
        return primal.new_zeros(primal.shape[-1]).expand(primal.shape)
    return tangent if tangent.stride(-1) == 1 else tangent.contiguous()


def jvp_launch(
    primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], eps: float, h_dtype: torch.dtype,
    out_dtype: torch.dtype, target: str | None = None,
) -> tuple[Launch, list[Tensor], Tensor]:  # fmt: skip
    """Return the launch; (h, its tangent,) the output, its tangent; and each token's mean and 1 / deviation (2, B, T).

    ``primals``: x, shift, scale, or x, y, gate, shift, scale.
    """
    from mmdit_kernels.adaln.jvp_kernel import adaln_jvp_kernel

    gated = len(primals) == 5
    b, t, d = primals[0].shape
    device = primals[0].device
    target = target or target_of(device)
    rows, warps = select(target, primals[0].dtype, out_dtype, d, b * t, device)
    main, tail = column_parts(d)
    dense = [x if x.stride(-1) == 1 else x.contiguous() for x in primals]
    dots = [_tangent(tangent, x) for tangent, x in zip(tangents, primals, strict=True)]
    results = [torch.empty((b, t, d), dtype=h_dtype, device=device) for _ in range(2 if gated else 0)]
    results += [torch.empty((b, t, d), dtype=out_dtype, device=device) for _ in range(2)]
    stats = torch.empty((2, b, t), dtype=torch.float32, device=device)

    def five(tensors: list[Tensor]) -> list[Tensor | None]:
        return [*tensors] if gated else [tensors[0], None, None, *tensors[1:]]

    def strides(tensors: list[Tensor | None]) -> list[int]:
        return [stride for x, count in zip(tensors, (2, 2, 1, 1, 1), strict=True) for stride in _strides(x, count)]

    arguments = (
        *(*five(dense), *five(dots), *(() if gated else (None, None)), *results, stats),
        *(*strides(five(dense)), *strides(five(dots)), t, b * t, eps),
    )
    constants = {
        "WIDTH": d,
        "MAIN": main,
        "TAIL": tail,
        "ROWS": rows,
        "HAS_GATE": gated,
        "ALIGNED": _aligned(*(x for x in (*dense, *dots) if x.dim() == 3)),
        "num_warps": warps,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }
    constants |= all_registers(target, warps)
    return Launch(adaln_jvp_kernel, b * -(-t // rows), arguments, constants), results, stats


@torch.library.custom_op("mmdit_kernels::layernorm_modulate_jvp", mutates_args=())
def layernorm_modulate_jvp(
    x: Tensor, shift: Tensor, scale: Tensor, x_dot: Tensor | None, shift_dot: Tensor | None, scale_dot: Tensor | None,
    eps: float, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the output, its tangent, and mean and 1 / deviation of each token (2, B, T)."""
    launch, (out, out_dot), stats = jvp_launch(
        (x, shift, scale), (x_dot, shift_dot, scale_dot), eps, x.dtype, out_dtype
    )
    launch.run(x)
    return out, out_dot, stats


@layernorm_modulate_jvp.register_fake
def _(x, shift, scale, x_dot, shift_dot, scale_dot, eps, out_dtype):  # type: ignore[no-untyped-def]
    out, out_dot = (x.new_empty(x.shape, dtype=out_dtype) for _ in range(2))
    return out, out_dot, x.new_empty((2, *x.shape[:2]), dtype=torch.float32)


@torch.library.custom_op("mmdit_kernels::gated_residual_layernorm_modulate_jvp", mutates_args=())
def gated_residual_layernorm_modulate_jvp(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, x_dot: Tensor | None, y_dot: Tensor | None,
    gate_dot: Tensor | None, shift_dot: Tensor | None, scale_dot: Tensor | None, eps: float, h_dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return h, its tangent, the output, its tangent, and mean and 1 / deviation of each token (2, B, T)."""
    primals, tangents = (x, y, gate, shift, scale), (x_dot, y_dot, gate_dot, shift_dot, scale_dot)
    launch, (h, h_dot, out, out_dot), stats = jvp_launch(primals, tangents, eps, h_dtype, out_dtype)
    launch.run(x)
    return h, h_dot, out, out_dot, stats


@gated_residual_layernorm_modulate_jvp.register_fake
def _(  # type: ignore[no-untyped-def]
    x, y, gate, shift, scale, x_dot, y_dot, gate_dot, shift_dot, scale_dot, eps, h_dtype, out_dtype
):
    results = [x.new_empty(x.shape, dtype=dtype) for dtype in (h_dtype, h_dtype, out_dtype, out_dtype)]
    return *results, x.new_empty((2, *x.shape[:2]), dtype=torch.float32)


def _setup_plain(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, shift, scale = inputs[:3]
    ctx.save_for_backward(x, scale, output[2])
    ctx.shift_dtype = shift.dtype
    ctx.set_materialize_grads(False)


def _backward_plain(
    ctx: Any, d_out: Tensor | None, d_out_dot: Tensor | None, d_stats: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_reverse_mode_of_duals(PLAIN, d_out_dot)
    if d_out is None:
        return (None,) * 8
    x, scale, stats = ctx.saved_tensors
    d_x, vectors = layernorm_modulate_backward(d_out, x, scale, stats)
    return d_x, vectors[0].to(ctx.shift_dtype), vectors[1].to(scale.dtype), *(None,) * 5


def _setup_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, gate, shift, scale = inputs[:5]
    h, _, out, _, stats = output
    ctx.save_for_backward(h, y, gate, scale, stats)
    ctx.x_dtype, ctx.shift_dtype, ctx.out_dtype = x.dtype, shift.dtype, out.dtype
    ctx.set_materialize_grads(False)


def _backward_gated(
    ctx: Any, d_h: Tensor | None, d_h_dot: Tensor | None, d_out: Tensor | None, d_out_dot: Tensor | None,
    d_stats: Tensor | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    for gradient in (d_h_dot, d_out_dot):
        refuse_reverse_mode_of_duals(GATED, gradient)
    if d_h is None and d_out is None:
        return (None,) * 13
    h, y, gate, scale, stats = ctx.saved_tensors
    if d_out is None:
        d_out = torch.zeros_like(h, dtype=ctx.out_dtype)
    d_x, d_y, vectors = gated_residual_layernorm_modulate_backward(d_h, d_out, h, y, gate, scale, stats, ctx.x_dtype)
    d_shift, d_scale, d_gate = vectors.unbind()
    d_vectors = d_gate.to(gate.dtype), d_shift.to(ctx.shift_dtype), d_scale.to(scale.dtype)
    return d_x, d_y, *d_vectors, *(None,) * 8


layernorm_modulate_jvp.register_autograd(_backward_plain, setup_context=_setup_plain)
gated_residual_layernorm_modulate_jvp.register_autograd(_backward_gated, setup_context=_setup_gated)


def layernorm_modulate_of_duals(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, out_dtype: torch.dtype
) -> Tensor | None:
    """Return the output with its tangent, or None where no argument has one."""
    duals = split(PLAIN, (x, shift, scale))
    if duals is None:
        return None
    out, out_dot, _ = layernorm_modulate_jvp(*duals[0], *duals[1], eps, out_dtype)
    return forward_ad.make_dual(out, out_dot)


def gated_residual_layernorm_modulate_of_duals(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float, h_dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Return h and the output with their tangents, or None where no argument has one."""
    duals = split(GATED, (x, y, gate, shift, scale))
    if duals is None:
        return None
    h, h_dot, out, out_dot, _ = gated_residual_layernorm_modulate_jvp(
        *duals[0], *duals[1], eps, h_dtype, out_dtype
    )  # fmt: skip
    return forward_ad.make_dual(h, h_dot), forward_ad.make_dual(out, out_dot)
