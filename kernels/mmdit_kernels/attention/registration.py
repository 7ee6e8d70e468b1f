"""attention as a torch.library operator: implementation on Triton, shapes for tracing, and autograd."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmdit_kernels.attention.configs import MAXIMUM_HEAD_DIM
from mmdit_kernels.attention.launches import MAXIMUM_STRIDE, Inputs, empty_like_tokens
from mmdit_kernels.attention.reference import Rope
from mmdit_kernels.attention.rotation import run_backward, run_forward
from mmdit_kernels.dispatch import ATTENTION_SHARED_MEMORY, shared_memory_problem
from mmdit_kernels.forward_mode import refuse_gradient_of_tables, refuse_tangent_of_gradient

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def find_problem(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None = None, k_weight: Tensor | None = None,
    rope: Rope | None = None, key_mask: Tensor | None = None, scale: float | None = None,
) -> str | None:  # fmt: skip
    """Return why the kernels do not take these arguments, or None."""
    d = q.shape[-1]
    if q.dtype not in DTYPES:
        return f"dtype {q.dtype} is not float32, float16 or bfloat16"
    if d % 8 or d > MAXIMUM_HEAD_DIM:
        return f"head dimension {d} is not a multiple of 8 up to {MAXIMUM_HEAD_DIM}"
    if scale is not None and not 0 < scale < math.inf:
        return f"scale {scale} is not positive and finite"
    if q.numel() == 0 or k.numel() == 0:
        return f"a size is zero in q {tuple(q.shape)}, k {tuple(k.shape)}"
    if max(stride for tensor in (q, k, v) for stride in tensor.stride()[2:]) >= MAXIMUM_STRIDE:
        return f"a row or column stride is {MAXIMUM_STRIDE} or more"
    others = [tensor for tensor in (k, v, q_weight, k_weight, key_mask, *(rope or ())) if tensor is not None]
    if any(tensor.device != q.device for tensor in others):
        return "the tensors are on different devices"
    return shared_memory_problem(q.device.type, q.device.index, ATTENTION_SHARED_MEMORY)


@torch.library.custom_op("mmdit_kernels::attention", mutates_args=())
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None,
    sin: Tensor | None, key_mask: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output (B, H, N, d) and the row statistics (2, B, H, N)."""
    return run_forward(Inputs(q, k, v, q_weight, k_weight, cos, sin, key_mask, scale))


@attention_forward.register_fake
def _(q, k, v, q_weight, k_weight, cos, sin, key_mask, scale):  # type: ignore[no-untyped-def]
    return empty_like_tokens(q, q.shape[2]), q.new_empty((2, *q.shape[:3]), dtype=torch.float32)


@torch.library.custom_op("mmdit_kernels::attention_backward", mutates_args=())
def attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, key_mask: Tensor | None, out: Tensor, stats: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k, v, and of the norm weights in float32 (zeros without a weight)."""
    inputs = Inputs(q, k, v, q_weight, k_weight, cos, sin, key_mask, scale)
    gradients = run_backward(inputs, d_out, out, stats)
    return *gradients[:3], gradients.q_weight.sum(0), gradients.k_weight.sum(0)


@attention_backward.register_fake
def _(d_out, q, k, v, q_weight, k_weight, cos, sin, key_mask, out, stats, scale):  # type: ignore[no-untyped-def]
    d_weights = [q.new_empty(q.shape[3], dtype=torch.float32) for _ in range(2)]
    return *(empty_like_tokens(x, x.shape[2]) for x in (q, k, v)), *d_weights


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.scale = scale
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor | None, d_stats: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return (None,) * 9
    refuse_gradient_of_tables(ctx.needs_input_grad[5:7])
    refuse_tangent_of_gradient("attention", (d_out,))
    tensors = ctx.saved_tensors
    d_q, d_k, d_v, *d_weights = attention_backward(d_out, *tensors, ctx.scale)
    pairs = zip(tensors[3:5], d_weights, strict=True)
    return d_q, d_k, d_v, *(None if w is None else d_w.to(w.dtype) for w, d_w in pairs), None, None, None, None


attention_forward.register_autograd(_backward, setup_context=_setup_context)
