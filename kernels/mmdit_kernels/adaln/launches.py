"""Launches of the adaptive layer norm kernels: outputs allocated, strides and constants put in order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmdit_kernels.adaln.configs import column_parts, select
from mmdit_kernels.launch import Launch, all_registers
from mmdit_kernels.tuning import target_of


def _rows(x: Tensor | None) -> Tensor | None:
    """Return x with its last dimension dense; a copy only where it is not."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor | None, count: int) -> tuple[int, ...]:
    return (0,) * count if x is None else x.stride()[:count]


def _aligned(*tensors: Tensor | None) -> bool:
    """Tell whether every row starts on a multiple of 8 elements."""
    return all(stride % 8 == 0 for tensor in tensors if tensor is not None for stride in tensor.stride()[:2])


def forward_launch(
    x: Tensor, y: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float, h_dtype: torch.dtype,
    out_dtype: torch.dtype, target: str | None = None,
) -> tuple[Launch, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Return the launch, h (None without y and gate), the output, and each token's mean and 1 / deviation (2, B, T)."""
    from mmdit_kernels.adaln.kernels import adaln_forward_kernel

    b, t, d = x.shape
    config = select("forward", target or target_of(x.device), x.dtype, out_dtype, d, b, t, x.device)
    main, tail = column_parts(d)
    x_rows, y, gate, shift_rows, scale_rows = (_rows(tensor) for tensor in (x, y, gate, shift, scale))
    h = None if y is None else torch.empty((b, t, d), dtype=h_dtype, device=x.device)
    out = torch.empty((b, t, d), dtype=out_dtype, device=x.device)
    stats = torch.empty((2, b, t), dtype=torch.float32, device=x.device)
    arguments = (
        *(x_rows, y, gate, shift_rows, scale_rows, h, out, stats, *_strides(x_rows, 2), *_strides(y, 2)),
        *(*_strides(gate, 1), *_strides(shift_rows, 1), *_strides(scale_rows, 1), t, b * t, eps),
    )
    constants = {
        "WIDTH": d,
        "MAIN": main,
        "TAIL": tail,
        "ROWS": config.rows,
        "HAS_GATE": y is not None,
        "ALIGNED": _aligned(x_rows, y),
        "num_warps": config.num_warps,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }
    constants |= all_registers(target or target_of(x.device), config.num_warps)
    return Launch(adaln_forward_kernel, b * -(-t // config.rows), arguments, constants), h, out, stats


class Gradients(NamedTuple):
    """d_x, d_y (None without a gate), and (2 or 3, B, chunks, D): d_shift, d_scale, d_gate of each chunk of tokens."""

    x: Tensor
    y: Tensor | None
    vectors: Tensor


def backward_launch(
    h: Tensor, d_out: Tensor, d_h: Tensor | None, y: Tensor | None, gate: Tensor | None, scale: Tensor, stats: Tensor,
    x_dtype: torch.dtype, target: str | None = None,
) -> tuple[Launch, Gradients]:  # fmt: skip
    """Return the launch and the gradients it fills."""
    from mmdit_kernels.adaln.backward import adaln_backward_kernel
    from mmdit_kernels.adaln.wide import adaln_backward_wide_kernel

    b, t, d = h.shape
    target = target or target_of(h.device)
    config = select("backward", target, h.dtype, d_out.dtype, d, b, t, h.device)
    main, tail = column_parts(d)
    chunks = -(-t // config.chunk)
    h, d_out, d_h, y, gate, scale = (_rows(tensor) for tensor in (h, d_out, d_h, y, gate, scale))  # type: ignore[assignment]
    d_x = torch.empty((b, t, d), dtype=x_dtype, device=h.device)
    d_y = None if y is None else torch.empty((b, t, d), dtype=y.dtype, device=h.device)
    partial = torch.empty((2 if y is None else 3, b, chunks, d), dtype=torch.float32, device=h.device)
    arguments = (
        *(h, d_out, d_h, y, gate, scale, stats, d_x, d_y, partial),
        *(*_strides(h, 2), *_strides(d_out, 2), *_strides(d_h, 2), *_strides(y, 2), *_strides(gate, 1)),
        *(*_strides(scale, 1), t, b * t, b * chunks * d),
    )
    constants: dict[str, int | bool] = {
        "WIDTH": d,
        "CHUNK": config.chunk,
        "HAS_D_H": d_h is not None,
        "HAS_GATE": y is not None,
        "ALIGNED": _aligned(h, d_out, d_h, y),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }
    if config.piece:
        launch = Launch(adaln_backward_wide_kernel, b * chunks, arguments, {**constants, "PIECE": config.piece})
        return launch, Gradients(d_x, d_y, partial)
    constants |= {"MAIN": main, "TAIL": tail, "ROWS": config.rows, "STAGES": config.num_stages}
    if h.dtype == torch.float32:
        constants |= all_registers(target, config.num_warps)
    return Launch(adaln_backward_kernel, b * chunks, arguments, constants), Gradients(d_x, d_y, partial)
