"""Adaptive layer norm, forward, and the tiles of rows that its kernels share: each activation is read and written once.

h = x + gate y,  u = (h - mean h) / sqrt(var h + eps),  out = u (1 + scale) + shift.

A width other than a power of two is split in two, MAIN + TAIL columns: 1152 is 1024 + 128, not 2048 of which half is masked.
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
