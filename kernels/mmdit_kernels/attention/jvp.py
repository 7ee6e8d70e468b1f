"""Attention with its derivative along a direction: launch, operator, and the way in and out of dual tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mmdit_kernels.attention.configs import Config, column_parts
from mmdit_kernels.attention.launches import MAXIMUM_STRIDE, Inputs, _Call, aligned, empty_like_tokens
from mmdit_kernels.attention.reference import Rope, norm_and_rotate
from mmdit_kernels.attention.registration import attention_backward
from mmdit_kernels.attention.rotation import old_compiler
from mmdit_kernels.forward_mode import (
    forward_mode,
    refuse_gradient_of_tables,
    refuse_reverse_mode_of_duals,
    split,
)
from mmdit_kernels.launch import Launch
from mmdit_kernels.tuning import bucket, tuned


def select(call: _Call, device: torch.device) -> Config:
    """Return the tiles: measured ones, or those of the table."""
    transforms = any(vector is not None for vector in call.vectors)
    name = str(call.dtype).removeprefix("torch.")
    lengths = f"n{bucket(call.queries)}/s{bucket(call.keys)}"
    found = tuned(f"attention_jvp/{name}/d{call.head_dim}/{lengths}/t{int(transforms)}", device)
    if found is not None:
        return Config(*found)
    if call.target == "interpreter":
        return Config(64, 64, 4, 1)
    return shipped(call.target, call.dtype, call.head_dim, transforms)


def shipped(target: str, dtype: torch.dtype, head_dim: int, transforms: bool) -> Config:
    """Return the tiles of the table: what compiles with no spills and fits (tests/kernels/test_jvp_compile.py)."""
    width = sum(column_parts(head_dim, dtype))
    amd = target.startswith("gfx")
    if dtype == torch.float32:
        return Config(16, 16, 4, 1) if amd else Config(16, 16, 8, 1, 255)
    if amd:
        return Config(64 if width <= 80 else 32, 32, 4, 1)
    if target in ("sm_100", "sm_103"):
        return Config(64 if transforms or width > 80 else 128, 32, 8, 2)
    if target != "sm_90":  # products that read both factors from registers
        if transforms:
            return Config(32, 16, 4, 2) if width == 128 else Config(64, 16, 8, 2)
        return Config(64, 16 if 80 < width < 128 else 32, 8, 2)
    if transforms:
        return Config(64, 32, 8, 2) if width <= 80 else Config(64, 16, 4, 2)
    return Config(64, 64 if width <= 80 else 32, 4, 2)


def jvp_launch(
    inputs: Inputs, q_dot: Tensor | None, k_dot: Tensor | None, v_dot: Tensor | None, target: str | None = None
) -> tuple[Launch, Tensor, Tensor, Tensor]:
    """Return the launch, the output (B, H, N, d), its tangent, and the row statistics (2, B, H, N)."""
    from mmdit_kernels.attention.jvp_kernel import attention_jvp_kernel

    call = _Call(inputs, target)
    config = select(call, inputs.q.device)
    q, k, v = inputs[:3]
    dots = [_rows(tangent, x) for tangent, x in zip((q_dot, k_dot, v_dot), (q, k, v), strict=True)]
    out, out_dot = (empty_like_tokens(q, call.queries) for _ in range(2))
    stats = torch.empty((2, call.batch, call.heads, call.queries), dtype=torch.float32, device=q.device)
    arguments = (
        *(q, k, v, *dots, out, out_dot, stats, *call.pointers(), *call.qkv_strides),
        *(stride for tangent in dots for stride in tangent.stride()),
        *(*out.stride()[:3], *call.sizes(), call.scale, call.scale * math.log2(math.e)),
    )
    constants = call.constants(config, aligned(q, k, v, *dots))
    programs = call.programs(call.queries, config.block_m)
    return Launch(attention_jvp_kernel, programs, arguments, constants), out, out_dot, stats


def _rows(tangent: Tensor | None, primal: Tensor) -> Tensor:
    """Return a tangent as the kernel reads it; None is one row of zeros that every row is."""
    if tangent is None:
        return primal.new_zeros(primal.shape[-1]).expand(primal.shape)
    tangent = tangent.to(primal.dtype)
    return tangent.contiguous() if max(tangent.stride()[2:]) >= MAXIMUM_STRIDE else tangent


@torch.library.custom_op("mmdit_kernels::attention_jvp", mutates_args=())
def attention_jvp(
    q: Tensor, k: Tensor, v: Tensor, q_dot: Tensor | None, k_dot: Tensor | None, v_dot: Tensor | None,
    q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    key_mask: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the output (B, H, N, d), its tangent, and the row statistics (2, B, H, N)."""
    inputs = Inputs(q, k, v, q_weight, k_weight, cos, sin, key_mask, scale)
    launch, *results = jvp_launch(inputs, q_dot, k_dot, v_dot)
    launch.run(q)
    return results[0], results[1], results[2]


@attention_jvp.register_fake
def _(q, k, v, q_dot, k_dot, v_dot, q_weight, k_weight, cos, sin, key_mask, scale):  # type: ignore[no-untyped-def]
    out, out_dot = (empty_like_tokens(q, q.shape[2]) for _ in range(2))
    return out, out_dot, q.new_empty((2, *q.shape[:3]), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    out, _, stats = output
    ctx.save_for_backward(*inputs[:3], *inputs[6:11], out, stats)
    ctx.scale = inputs[11]
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_out: Tensor | None, d_out_dot: Tensor | None, d_stats: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_reverse_mode_of_duals("attention", d_out_dot)
    if d_out is None:
        return (None,) * 12
    refuse_gradient_of_tables(ctx.needs_input_grad[8:10])
    tensors = ctx.saved_tensors
    d_q, d_k, d_v, *d_weights = attention_backward(d_out, *tensors, ctx.scale)
    pairs = zip(tensors[3:5], d_weights, strict=True)
    weights = (None if w is None else d_w.to(w.dtype) for w, d_w in pairs)
    return d_q, d_k, d_v, None, None, None, *weights, None, None, None, None


attention_jvp.register_autograd(_backward, setup_context=_setup_context)


def attention_of_duals(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, rope: Rope | None,
    key_mask: Tensor | None, scale: float,
) -> Tensor | None:  # fmt: skip
    """Return the output with its tangent, or None where no argument has one.

    The kernel takes tangents of q, k and v; where norm weights or rope tables have some, PyTorch does norm and rotation.
    """
    if not forward_mode():
        return None
    tables = () if rope is None else rope
    if split("attention", (q_weight, k_weight, *tables)) is not None or (q.dtype == torch.float32 and old_compiler()):
        q, k = norm_and_rotate(q, k, q_weight, k_weight, rope)
        q_weight = k_weight = rope = None
    duals = split("attention", (q, k, v))
    if duals is None:
        return None
    cos, sin = (None, None) if rope is None else rope
    primals, tangents = duals
    out, out_dot, _ = attention_jvp(*primals, *tangents, q_weight, k_weight, cos, sin, key_mask, scale)
    return forward_ad.make_dual(out, out_dot)
