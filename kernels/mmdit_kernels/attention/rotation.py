"""Norm and rotation of q and k ahead of attention, for lengths at which each block of queries would do those of all keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdit_kernels.attention.configs import column_parts
from mmdit_kernels.attention.launches import (
    Gradients,
    Inputs,
    aligned,
    empty_gradients,
    empty_like_tokens,
    forward_launch,
    plain_backward,
)
from mmdit_kernels.dispatch import constant_in_graphs, interpreting, triton_version
from mmdit_kernels.launch import Launch

# Shorter ones gain nothing: what is saved in instructions is moved in bytes (kernels/README.md).
SHORTEST = 512
ROWS, WARPS = 32, 4


@constant_in_graphs
def old_compiler() -> bool:
    """Tell whether this triton cannot compile float64 products of what was rotated before (3.5 to 3.7 on NVIDIA)."""
    version = (triton_version() or "0").split("+")[0].split(".")
    return not interpreting() and tuple(int(part) for part in version[:2]) < (3, 8)


def rotates_first(inputs: Inputs) -> bool:
    """Tell whether norm and rotation are done ahead of the attention kernels: where queries and keys are both many."""
    q, k = inputs.q, inputs.k
    transforms = any(tensor is not None for tensor in inputs[3:7])
    if q.dtype == torch.float32:
        return transforms and old_compiler()
    return transforms and min(q.shape[2], k.shape[2]) >= SHORTEST


def _constants(x: Tensor, weight: Tensor | None, cos: Tensor | None) -> dict[str, Any]:
    main, tail = column_parts(x.shape[3], x.dtype)
    return {
        "HEAD_DIM": x.shape[3],
        "MAIN": main,
        "TAIL": tail,
        "ROWS": ROWS,
        "HAS_WEIGHT": weight is not None,
        "HAS_ROPE": cos is not None,
        "EVEN": x.shape[2] % ROWS == 0,
        "ALIGNED": aligned(x),
        "num_warps": WARPS,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _strides(*tables: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if table is None or table.dim() == 2 else table.stride(0) for table in tables)


def rotation_launch(x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> tuple[Launch, Tensor]:
    """Return the launch, and the normed and rotated x (B, H, N, d) that it fills."""
    from mmdit_kernels.attention.rotation_kernel import rotation_kernel

    b, h, n, _ = x.shape
    out = empty_like_tokens(x, n)
    weight, cos, sin = _dense(weight), _dense(cos), _dense(sin)
    arguments = (x, out, weight, cos, sin, *x.stride(), *out.stride()[:3], *_strides(cos, sin), h, n)
    return Launch(rotation_kernel, b * -(-n // ROWS), arguments, _constants(x, weight, cos)), out


def rotation_backward_launch(
    g: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, d_x: Tensor
) -> tuple[Launch, Tensor]:
    """Return the launch, which fills d_x, and rows to sum for the gradient of the weight (none without one)."""
    from mmdit_kernels.attention.rotation_kernel import rotation_backward_kernel

    b, h, n, d = x.shape
    weight, cos, sin = _dense(weight), _dense(cos), _dense(sin)
    programs = b * -(-n // ROWS)
    d_weight = torch.empty((0 if weight is None else programs * h, d), dtype=torch.float32, device=x.device)
    arguments = (
        *(g, x, d_x, d_weight, weight, cos, sin, *g.stride()[:3], *x.stride(), *d_x.stride()[:3]),
        *(*_strides(cos, sin), h, n),
    )
    return Launch(rotation_backward_kernel, programs, arguments, _constants(x, weight, cos)), d_weight


def _rotate(inputs: Inputs) -> Inputs:
    rotated = []
    for x, weight in ((inputs.q, inputs.q_weight), (inputs.k, inputs.k_weight)):
        launch, out = rotation_launch(x, weight, inputs.cos, inputs.sin)
        launch.run(x)
        rotated.append(out)
    return inputs._replace(q=rotated[0], k=rotated[1], q_weight=None, k_weight=None, cos=None, sin=None)


def run_forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, N, d) and the row statistics (2, B, H, N)."""
    launch, out, stats = forward_launch(_rotate(inputs) if rotates_first(inputs) else inputs)
    launch.run(inputs.q)
    return out, stats


def run_backward(
    inputs: Inputs, d_out: Tensor, out: Tensor, stats: Tensor, into: tuple[Tensor, Tensor, Tensor] | None = None
) -> Gradients:
    """Return the gradients; those of q, k and v are ``into``, or new. What was rotated is rotated again, not kept."""
    if not rotates_first(inputs):
        return plain_backward(inputs, d_out, out, stats, into)
    into = into or empty_gradients(inputs)
    turned = (*empty_gradients(inputs)[:2], into[2])
    plain_backward(_rotate(inputs), d_out, out, stats, turned)
    d_weights = []
    sides = (inputs.q, inputs.q_weight), (inputs.k, inputs.k_weight)
    for (x, weight), g, d_x in zip(sides, turned, into, strict=False):
        launch, rows = rotation_backward_launch(g, x, weight, inputs.cos, inputs.sin, d_x)
        launch.run(x)
        d_weights.append(rows)
    return Gradients(*into, *d_weights)
