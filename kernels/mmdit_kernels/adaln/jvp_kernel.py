"""Adaptive layer norm and its derivative along a direction: every activation and tangent is read and written once.

With a dot for the tangent and u = (h - mean h) rstd, rstd = 1 / sqrt(var h + eps):

    h. = x. + gate. y + gate y.        u. = rstd (h. - mean h. - u mean(u h.))
    out. = u. (1 + scale) + u scale. + shift.
"""

import triton
import triton.language as tl

from mmdit_kernels.adaln.kernels import centre, load_part, load_vector, row_offset, store_part
from mmdit_kernels.casts import narrow, widen


@triton.jit
def add_gated_dual(
    x, x_offset, y, y_offset, gate, x_dot, x_dot_offset, y_dot, y_dot_offset, gate_dot, h, h_dot, h_offset, valid,
    START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr, HAS_GATE: tl.constexpr,
):  # fmt: skip
    """Return one part of h, rounded to the dtype of h as the norm sees it, and of its tangent; both are stored."""
    part = load_part(x, x_offset, valid, START, PART, WIDTH)
    part_dot = load_part(x_dot, x_dot_offset, valid, START, PART, WIDTH)
    if HAS_GATE:
        g = load_vector(gate, START, PART, WIDTH)
        value = load_part(y, y_offset, valid, START, PART, WIDTH)
        part += g * value
        part_dot += load_vector(gate_dot, START, PART, WIDTH) * value
        part_dot += g * load_part(y_dot, y_dot_offset, valid, START, PART, WIDTH)
        part = narrow(part, h.dtype.element_ty)
        store_part(h, h_offset, valid, part, START, PART, WIDTH)
        store_part(h_dot, h_offset, valid, part_dot, START, PART, WIDTH)
        part = widen(part)
    return part, part_dot


@triton.jit
def modulate_dual(
    u, u_dot, shift, scale, shift_dot, scale_dot, out, out_dot, offset, valid, START: tl.constexpr, PART: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    factor = 1.0 + load_vector(scale, START, PART, WIDTH)
    store_part(out, offset, valid, u * factor + load_vector(shift, START, PART, WIDTH), START, PART, WIDTH)
    u_dot = u_dot * factor + u * load_vector(scale_dot, START, PART, WIDTH)
    store_part(out_dot, offset, valid, u_dot + load_vector(shift_dot, START, PART, WIDTH), START, PART, WIDTH)


@triton.jit
def adaln_jvp_kernel(
    x, y, gate, shift, scale, x_dot, y_dot, gate_dot, shift_dot, scale_dot, h, h_dot, out, out_dot, stats,
    x_sb, x_st, y_sb, y_st, gate_sb, shift_sb, scale_sb,
    x_dot_sb, x_dot_st, y_dot_sb, y_dot_st, gate_dot_sb, shift_dot_sb, scale_dot_sb, tokens, stats_size, eps,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, HAS_GATE: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """One program per ROWS tokens of one sample."""
    blocks = tl.cdiv(tokens, ROWS)
    batch = tl.program_id(0) // blocks
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    valid = (rows < tokens)[:, None]
    x_offset = row_offset(batch, rows, x_sb, x_st, ALIGNED)
    x_dot_offset = row_offset(batch, rows, x_dot_sb, x_dot_st, ALIGNED)
    y_offset = x_offset
    y_dot_offset = x_dot_offset
    if HAS_GATE:
        y_offset = row_offset(batch, rows, y_sb, y_st, ALIGNED)
        y_dot_offset = row_offset(batch, rows, y_dot_sb, y_dot_st, ALIGNED)
        gate += batch.to(tl.int64) * gate_sb
        gate_dot += batch.to(tl.int64) * gate_dot_sb
    shift += batch.to(tl.int64) * shift_sb
    scale += batch.to(tl.int64) * scale_sb
    shift_dot += batch.to(tl.int64) * shift_dot_sb
    scale_dot += batch.to(tl.int64) * scale_dot_sb
    token = batch.to(tl.int64) * tokens + rows
    offset = token[:, None] * WIDTH

    main, main_dot = add_gated_dual(
        x, x_offset, y, y_offset, gate, x_dot, x_dot_offset, y_dot, y_dot_offset, gate_dot, h, h_dot, offset, valid,
        0, MAIN, WIDTH, HAS_GATE,
    )  # fmt: skip
    total = tl.sum(main, axis=1)
    total_dot = tl.sum(main_dot, axis=1)
    tail = main
    tail_dot = main_dot
    if TAIL > 0:
        tail, tail_dot = add_gated_dual(
            x, x_offset, y, y_offset, gate, x_dot, x_dot_offset, y_dot, y_dot_offset, gate_dot, h, h_dot, offset, valid,
            MAIN, TAIL, WIDTH, HAS_GATE,
        )  # fmt: skip
        total += tl.sum(tail, axis=1)
        total_dot += tl.sum(tail_dot, axis=1)
    mean = total / WIDTH
    mean_dot = total_dot / WIDTH
    main = centre(main, mean, 0, MAIN, WIDTH)
    main_dot = centre(main_dot, mean_dot, 0, MAIN, WIDTH)
    squares = tl.sum(main * main, axis=1)
    product = tl.sum(main * main_dot, axis=1)
    if TAIL > 0:
        tail = centre(tail, mean, MAIN, TAIL, WIDTH)
        tail_dot = centre(tail_dot, mean_dot, MAIN, TAIL, WIDTH)
        squares += tl.sum(tail * tail, axis=1)
        product += tl.sum(tail * tail_dot, axis=1)
    rstd = 1.0 / tl.sqrt_rn(squares / WIDTH + eps)
    product = product / WIDTH * rstd  # mean(u h.)

    main = main * rstd[:, None]
    main_dot = (main_dot - main * product[:, None]) * rstd[:, None]
    modulate_dual(main, main_dot, shift, scale, shift_dot, scale_dot, out, out_dot, offset, valid, 0, MAIN, WIDTH)
    if TAIL > 0:
        tail = tail * rstd[:, None]
        tail_dot = (tail_dot - tail * product[:, None]) * rstd[:, None]
        modulate_dual(
            tail, tail_dot, shift, scale, shift_dot, scale_dot, out, out_dot, offset, valid, MAIN, TAIL, WIDTH
        )
    tl.store(stats + token, mean, mask=rows < tokens)
    tl.store(stats + stats_size + token, rstd, mask=rows < tokens)
