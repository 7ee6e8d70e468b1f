"""Attention of a packed projection as a torch.library operator: q, k, v are read from one tensor, and so is their gradient.

Autograd would put three gradients together by ``aten.stack`` and copy them to the layout of the projection's output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdit_kernels.attention.launches import Inputs, empty_like_tokens
from mmdit_kernels.attention.rotation import run_backward, run_forward
from mmdit_kernels.forward_mode import refuse_gradient_of_tables, refuse_tangent_of_gradient


def _split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v, views (B, H, N, d) of (B, N, 3, H, d)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v


@torch.library.custom_op("mmdit_kernels::attention_packed", mutates_args=())
def attention_packed_forward(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    key_mask: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output (B, H, N, d) and the row statistics (2, B, H, N)."""
    return run_forward(Inputs(*_split(qkv), q_weight, k_weight, cos, sin, key_mask, scale))


@attention_packed_forward.register_fake
def _(qkv, q_weight, k_weight, cos, sin, key_mask, scale):  # type: ignore[no-untyped-def]
    q = _split(qkv)[0]
    return empty_like_tokens(q, q.shape[2]), q.new_empty((2, *q.shape[:3]), dtype=torch.float32)


@torch.library.custom_op("mmdit_kernels::attention_packed_backward", mutates_args=())
def attention_packed_backward(
    d_out: Tensor, qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None,
    sin: Tensor | None, key_mask: Tensor | None, out: Tensor, stats: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradient of qkv, dense (B, N, 3, H, d), and of the norm weights in float32 (zeros without a weight)."""
    d_qkv = qkv.new_empty(qkv.shape)
    inputs = Inputs(*_split(qkv), q_weight, k_weight, cos, sin, key_mask, scale)
    gradients = run_backward(inputs, d_out, out, stats, into=_split(d_qkv))
    return d_qkv, gradients.q_weight.sum(0), gradients.k_weight.sum(0)


@attention_packed_backward.register_fake
def _(d_out, qkv, q_weight, k_weight, cos, sin, key_mask, out, stats, scale):  # type: ignore[no-untyped-def]
    d_weights = [qkv.new_empty(qkv.shape[4], dtype=torch.float32) for _ in range(2)]
    return qkv.new_empty(qkv.shape), *d_weights


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.scale = scale
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor | None, d_stats: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return (None,) * 7
    refuse_gradient_of_tables(ctx.needs_input_grad[3:5])
    refuse_tangent_of_gradient("attention_packed", (d_out,))
    tensors = ctx.saved_tensors
    d_qkv, *d_weights = attention_packed_backward(d_out, *tensors, ctx.scale)
    pairs = zip(tensors[1:3], d_weights, strict=True)
    return d_qkv, *(None if w is None else d_w.to(w.dtype) for w, d_w in pairs), None, None, None, None


attention_packed_forward.register_autograd(_backward, setup_context=_setup_context)
