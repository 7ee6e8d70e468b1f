"""Adaptive layer norm, backward, of rows too wide for the registers of a block: a piece of the columns at a time.

h and d_out are read twice, the second time from the cache; the equations are those of ``backward.py``.
"""

import triton
import triton.language as tl

from mmdit_kernels.casts import narrow, widen


@triton.jit
def load_piece(base, offset, columns, valid):
    return widen(tl.load(base + offset + columns, mask=valid, other=0.0))


@triton.jit
def row_start(batch, token, stride_batch, stride_row, ALIGNED: tl.constexpr):
    offset = batch.to(tl.int64) * stride_batch + token.to(tl.int64) * stride_row
    if ALIGNED:
        offset = tl.multiple_of(offset, 8)
    return offset


@triton.jit
def adaln_backward_wide_kernel(
    h, d_out, d_h, y, gate, scale, stats, d_x, d_y, partial,
    h_sb, h_st, d_out_sb, d_out_st, d_h_sb, d_h_st, y_sb, y_st, gate_sb, scale_sb, tokens, stats_size, partial_size,
    WIDTH: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr, HAS_D_H: tl.constexpr, HAS_GATE: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """One program per CHUNK tokens of one sample; leaves one row each of d_shift, d_scale, d_gate."""
    chunks = tl.cdiv(tokens, CHUNK)
    batch = tl.program_id(0) // chunks
    start = (tl.program_id(0) % chunks) * CHUNK
    count = tl.minimum(CHUNK, tokens - start)
    scale += batch.to(tl.int64) * scale_sb
    stats += batch.to(tl.int64) * tokens + start
    if HAS_GATE:
        gate += batch.to(tl.int64) * gate_sb
    places = tl.arange(0, CHUNK)
    means_g = tl.zeros([CHUNK], tl.float32)
    means_gu = tl.zeros([CHUNK], tl.float32)
    for index in range(0, count):
        mean = tl.load(stats + index)
        rstd = tl.load(stats + stats_size + index)
        h_offset = row_start(batch, start + index, h_sb, h_st, ALIGNED)
        d_out_offset = row_start(batch, start + index, d_out_sb, d_out_st, ALIGNED)
        total_g = tl.zeros([PIECE], tl.float32)
        total_gu = tl.zeros([PIECE], tl.float32)
        for first in range(0, WIDTH, PIECE):
            columns = first + tl.arange(0, PIECE)
            valid = columns < WIDTH
            g = load_piece(d_out, d_out_offset, columns, valid) * (1.0 + load_piece(scale, 0, columns, valid))
            total_g += g
            total_gu += g * (load_piece(h, h_offset, columns, valid) - mean) * rstd
        means_g = tl.where(places == index, tl.sum(total_g, axis=0) / WIDTH, means_g)
        means_gu = tl.where(places == index, tl.sum(total_gu, axis=0) / WIDTH, means_gu)

    partial += tl.program_id(0).to(tl.int64) * WIDTH
    # 2 * partial_size may pass 2^31 where partial_size does not, which is a constant where it is 1
    plane = tl.full([], 0, tl.int64) + partial_size
    for first in range(0, WIDTH, PIECE):
        columns = first + tl.arange(0, PIECE)
        valid = columns < WIDTH
        factor = 1.0 + load_piece(scale, 0, columns, valid)
        if HAS_GATE:
            gates = load_piece(gate, 0, columns, valid)
        d_shift = tl.zeros([PIECE], tl.float32)
        d_scale = tl.zeros([PIECE], tl.float32)
        d_gate = tl.zeros([PIECE], tl.float32)
        for index in range(0, count):
            mean = tl.load(stats + index)
            rstd = tl.load(stats + stats_size + index)
            mean_g = tl.sum(tl.where(places == index, means_g, 0.0), axis=0)
            mean_gu = tl.sum(tl.where(places == index, means_gu, 0.0), axis=0)
            token = start + index
            offset = (batch.to(tl.int64) * tokens + token) * WIDTH
            u = load_piece(h, row_start(batch, token, h_sb, h_st, ALIGNED), columns, valid)
            u = (u - mean) * rstd
            e = load_piece(d_out, row_start(batch, token, d_out_sb, d_out_st, ALIGNED), columns, valid)
            d_shift += e
            d_scale += e * u
            gradient = (e * factor - mean_g - u * mean_gu) * rstd
            if HAS_D_H:
                gradient += load_piece(d_h, row_start(batch, token, d_h_sb, d_h_st, ALIGNED), columns, valid)
            tl.store(d_x + offset + columns, narrow(gradient, d_x.dtype.element_ty), mask=valid)
            if HAS_GATE:
                tl.store(d_y + offset + columns, narrow(gradient * gates, d_y.dtype.element_ty), mask=valid)
                d_gate += gradient * load_piece(y, row_start(batch, token, y_sb, y_st, ALIGNED), columns, valid)
        tl.store(partial + columns, d_shift, mask=valid)
        tl.store(partial + plane + columns, d_scale, mask=valid)
        if HAS_GATE:
            tl.store(partial + 2 * plane + columns, d_gate, mask=valid)
