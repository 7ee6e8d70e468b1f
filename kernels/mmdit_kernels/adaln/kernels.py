"""Adaptive layer norm, forward and backward: each activation is read and written once.

Forward:  h = x + gate y,  u = (h - mean h) / sqrt(var h + eps),  out = u (1 + scale) + shift.
Backward: with e = d_out and g = e (1 + scale),
    d_shift = sum_t e,  d_scale = sum_t e u,
    d_x = d_h + (g - mean g - u mean(g u)) / sqrt(var h + eps),  d_y = gate d_x,  d_gate = sum_t d_x y.
The sums over tokens have two stages: each program adds up its own tokens, and the rows it leaves are added afterwards;
no atomics.

A width that is no power of two is two column parts, MAIN + TAIL: 1152 is 1024 + 128, not 2048 of which half is masked.
"""

import triton
import triton.language as tl

from mmdit_kernels.casts import narrow, widen


@triton.jit
def row_offset(batch, rows, stride_batch, stride_row, ALIGNED: tl.constexpr):
    base = batch.to(tl.int64) * stride_batch
    if ALIGNED:
        base = tl.multiple_of(base, 8)
        stride_row = tl.multiple_of(stride_row, 8)
    return (base + rows.to(tl.int64) * stride_row)[:, None]


@triton.jit
def load_part(base, offset, valid, START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    columns = (START + tl.arange(0, PART))[None, :]
    if START + PART <= WIDTH:
        part = tl.load(base + offset + columns, mask=valid, other=0.0)
    else:
        part = tl.load(base + offset + columns, mask=valid & (columns < WIDTH), other=0.0)
    return widen(part)


@triton.jit
def store_part(base, offset, valid, part, START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    columns = (START + tl.arange(0, PART))[None, :]
    value = narrow(part, base.dtype.element_ty)
    if START + PART <= WIDTH:
        tl.store(base + offset + columns, value, mask=valid)
    else:
        tl.store(base + offset + columns, value, mask=valid & (columns < WIDTH))


@triton.jit
def load_vector(base, START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    columns = START + tl.arange(0, PART)
    return widen(tl.load(base + columns, mask=columns < WIDTH, other=0.0))[None, :]


@triton.jit
def store_vector(base, part, START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    columns = START + tl.arange(0, PART)
    tl.store(base + columns, part, mask=columns < WIDTH)


@triton.jit
def add_gated(x, x_offset, y, y_offset, gate, h, h_offset, valid, START: tl.constexpr, PART: tl.constexpr,
              WIDTH: tl.constexpr, HAS_GATE: tl.constexpr):  # fmt: skip
    """Return one part of h as the norm sees it: rounded to the dtype of h, which is stored."""
    part = load_part(x, x_offset, valid, START, PART, WIDTH)
    if HAS_GATE:
        part += load_vector(gate, START, PART, WIDTH) * load_part(y, y_offset, valid, START, PART, WIDTH)
        part = narrow(part, h.dtype.element_ty)
        store_part(h, h_offset, valid, part, START, PART, WIDTH)
        part = widen(part)
    return part


@triton.jit
def centre(part, mean, START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    """Subtract the mean, leaving zeros in masked columns."""
    part = part - mean[:, None]
    if START + PART > WIDTH:
        part = tl.where((START + tl.arange(0, PART))[None, :] < WIDTH, part, 0.0)
    return part


@triton.jit
def adaln_forward_kernel(
    x, y, gate, shift, scale, h, out, stats,
    x_sb, x_st, y_sb, y_st, gate_sb, shift_sb, scale_sb, tokens, stats_size, eps,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, HAS_GATE: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """One program per ROWS tokens of one sample."""
    blocks = tl.cdiv(tokens, ROWS)
    batch = tl.program_id(0) // blocks
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    valid = (rows < tokens)[:, None]
    x_offset = row_offset(batch, rows, x_sb, x_st, ALIGNED)
    y_offset = x_offset
    if HAS_GATE:
        y_offset = row_offset(batch, rows, y_sb, y_st, ALIGNED)
        gate += batch.to(tl.int64) * gate_sb
    shift += batch.to(tl.int64) * shift_sb
    scale += batch.to(tl.int64) * scale_sb
    token = batch.to(tl.int64) * tokens + rows
    offset = token[:, None] * WIDTH

    main = add_gated(x, x_offset, y, y_offset, gate, h, offset, valid, 0, MAIN, WIDTH, HAS_GATE)
    total = tl.sum(main, axis=1)
    tail = main
    if TAIL > 0:
        tail = add_gated(x, x_offset, y, y_offset, gate, h, offset, valid, MAIN, TAIL, WIDTH, HAS_GATE)
        total += tl.sum(tail, axis=1)
    mean = total / WIDTH
    main = centre(main, mean, 0, MAIN, WIDTH)
    squares = tl.sum(main * main, axis=1)
    if TAIL > 0:
        tail = centre(tail, mean, MAIN, TAIL, WIDTH)
        squares += tl.sum(tail * tail, axis=1)
    rstd = 1.0 / tl.sqrt_rn(squares / WIDTH + eps)

    main = main * rstd[:, None] * (1.0 + load_vector(scale, 0, MAIN, WIDTH)) + load_vector(shift, 0, MAIN, WIDTH)
    store_part(out, offset, valid, main, 0, MAIN, WIDTH)
    if TAIL > 0:
        tail = tail * rstd[:, None] * (1.0 + load_vector(scale, MAIN, TAIL, WIDTH))
        tail += load_vector(shift, MAIN, TAIL, WIDTH)
        store_part(out, offset, valid, tail, MAIN, TAIL, WIDTH)
    tl.store(stats + token, mean, mask=rows < tokens)
    tl.store(stats + stats_size + token, rstd, mask=rows < tokens)


@triton.jit
def normed_and_scaled(h, h_offset, d_out, d_out_offset, scale, mean, rstd, valid, START: tl.constexpr,
                      PART: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Return one part of u, e and g = e (1 + scale)."""
    u = centre(load_part(h, h_offset, valid, START, PART, WIDTH), mean, START, PART, WIDTH) * rstd[:, None]
    e = load_part(d_out, d_out_offset, valid, START, PART, WIDTH)
    return u, e, e * (1.0 + load_vector(scale, START, PART, WIDTH))


@triton.jit
def finish_part(u, g, mean_g, mean_gu, rstd, d_h, d_h_offset, y, y_offset, gate, d_x, d_y, offset, valid,
                START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr, HAS_D_H: tl.constexpr,
                HAS_GATE: tl.constexpr):  # fmt: skip
    """Store one part of d_x and d_y; return the part's summand of d_gate."""
    part = (g - mean_g[:, None] - u * mean_gu[:, None]) * rstd[:, None]
    if HAS_D_H:
        part += load_part(d_h, d_h_offset, valid, START, PART, WIDTH)
    store_part(d_x, offset, valid, part, START, PART, WIDTH)
    if HAS_GATE:
        store_part(d_y, offset, valid, part * load_vector(gate, START, PART, WIDTH), START, PART, WIDTH)
        part = part * load_part(y, y_offset, valid, START, PART, WIDTH)
    return part


@triton.jit
def adaln_backward_kernel(
    h, d_out, d_h, y, gate, scale, stats, d_x, d_y, partial,
    h_sb, h_st, d_out_sb, d_out_st, d_h_sb, d_h_st, y_sb, y_st, gate_sb, scale_sb, tokens, stats_size, partial_size,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    STAGES: tl.constexpr, HAS_D_H: tl.constexpr, HAS_GATE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One program per CHUNK tokens of one sample, ROWS at a time; leaves one row each of d_shift, d_scale, d_gate."""
    chunks = tl.cdiv(tokens, CHUNK)
    batch = tl.program_id(0) // chunks
    start = (tl.program_id(0) % chunks) * CHUNK
    scale += batch.to(tl.int64) * scale_sb
    if HAS_GATE:
        gate += batch.to(tl.int64) * gate_sb
    shift_main = tl.zeros([ROWS, MAIN], tl.float32)
    scale_main = tl.zeros([ROWS, MAIN], tl.float32)
    gate_main = tl.zeros([ROWS, MAIN], tl.float32)
    if TAIL > 0:
        shift_tail = tl.zeros([ROWS, TAIL], tl.float32)
        scale_tail = tl.zeros([ROWS, TAIL], tl.float32)
        gate_tail = tl.zeros([ROWS, TAIL], tl.float32)

    for first in tl.range(0, CHUNK, ROWS, num_stages=STAGES):
        rows = start + first + tl.arange(0, ROWS)
        valid = (rows < tokens)[:, None]
        token = batch.to(tl.int64) * tokens + rows
        mean = tl.load(stats + token, mask=rows < tokens, other=0.0)
        rstd = tl.load(stats + stats_size + token, mask=rows < tokens, other=0.0)
        offset = token[:, None] * WIDTH
        h_offset = row_offset(batch, rows, h_sb, h_st, ALIGNED)
        d_out_offset = row_offset(batch, rows, d_out_sb, d_out_st, ALIGNED)
        d_h_offset = offset
        y_offset = offset
        if HAS_D_H:
            d_h_offset = row_offset(batch, rows, d_h_sb, d_h_st, ALIGNED)
        if HAS_GATE:
            y_offset = row_offset(batch, rows, y_sb, y_st, ALIGNED)

        u_main, e, g_main = normed_and_scaled(
            h, h_offset, d_out, d_out_offset, scale, mean, rstd, valid, 0, MAIN, WIDTH
        )
        shift_main += e
        scale_main += e * u_main
        mean_g = tl.sum(g_main, axis=1)
        mean_gu = tl.sum(g_main * u_main, axis=1)
        if TAIL > 0:
            u_tail, e, g_tail = normed_and_scaled(
                h, h_offset, d_out, d_out_offset, scale, mean, rstd, valid, MAIN, TAIL, WIDTH
            )
            shift_tail += e
            scale_tail += e * u_tail
            mean_g += tl.sum(g_tail, axis=1)
            mean_gu += tl.sum(g_tail * u_tail, axis=1)
        mean_g = mean_g / WIDTH
        mean_gu = mean_gu / WIDTH
        part = finish_part(
            u_main, g_main, mean_g, mean_gu, rstd, d_h, d_h_offset, y, y_offset, gate, d_x, d_y, offset, valid, 0, MAIN,
            WIDTH, HAS_D_H, HAS_GATE,
        )  # fmt: skip
        if HAS_GATE:
            gate_main += part
        if TAIL > 0:
            part = finish_part(
                u_tail, g_tail, mean_g, mean_gu, rstd, d_h, d_h_offset, y, y_offset, gate, d_x, d_y, offset, valid,
                MAIN, TAIL, WIDTH, HAS_D_H, HAS_GATE,
            )  # fmt: skip
            if HAS_GATE:
                gate_tail += part

    partial += tl.program_id(0).to(tl.int64) * WIDTH
    store_vector(partial, tl.sum(shift_main, axis=0), 0, MAIN, WIDTH)
    store_vector(partial + partial_size, tl.sum(scale_main, axis=0), 0, MAIN, WIDTH)
    if HAS_GATE:
        store_vector(partial + 2 * partial_size, tl.sum(gate_main, axis=0), 0, MAIN, WIDTH)
    if TAIL > 0:
        store_vector(partial, tl.sum(shift_tail, axis=0), MAIN, TAIL, WIDTH)
        store_vector(partial + partial_size, tl.sum(scale_tail, axis=0), MAIN, TAIL, WIDTH)
        if HAS_GATE:
            store_vector(partial + 2 * partial_size, tl.sum(gate_tail, axis=0), MAIN, TAIL, WIDTH)
