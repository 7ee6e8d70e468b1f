"""Adaptive layer norm, backward: each activation is read and written once.

With u the norm, e = d_out and g = e (1 + scale):
    d_shift = sum_t e,  d_scale = sum_t e u,
    d_x = d_h + (g - mean g - u mean(g u)) / sqrt(var h + eps),  d_y = gate d_x,  d_gate = sum_t d_x y.
The sums over tokens have two stages: each program adds up its own tokens, and the rows it leaves are added afterwards;
no atomics.
"""

import triton
import triton.language as tl

from mmdit_kernels.adaln.kernels import centre, load_part, load_vector, row_offset, store_part, store_vector


@triton.jit
def normed(h, h_offset, mean, rstd, valid, START: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr):
    """Return one part of u."""
    return centre(load_part(h, h_offset, valid, START, PART, WIDTH), mean, START, PART, WIDTH) * rstd[:, None]


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
        store_part(d_y, offset, valid, part * gate, START, PART, WIDTH)
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
    factor_main = 1.0 + load_vector(scale, 0, MAIN, WIDTH)
    gates_main = factor_main
    if HAS_GATE:
        gate += batch.to(tl.int64) * gate_sb
        gates_main = load_vector(gate, 0, MAIN, WIDTH)
    shift_main = tl.zeros([ROWS, MAIN], tl.float32)
    scale_main = tl.zeros([ROWS, MAIN], tl.float32)
    gate_main = tl.zeros([ROWS, MAIN], tl.float32)
    if TAIL > 0:
        factor_tail = 1.0 + load_vector(scale, MAIN, TAIL, WIDTH)
        gates_tail = factor_tail
        if HAS_GATE:
            gates_tail = load_vector(gate, MAIN, TAIL, WIDTH)
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

        u_main = normed(h, h_offset, mean, rstd, valid, 0, MAIN, WIDTH)
        e = load_part(d_out, d_out_offset, valid, 0, MAIN, WIDTH)
        shift_main += e
        scale_main += e * u_main
        g_main = e * factor_main
        mean_g = tl.sum(g_main, axis=1)
        mean_gu = tl.sum(g_main * u_main, axis=1)
        if TAIL > 0:
            u_tail = normed(h, h_offset, mean, rstd, valid, MAIN, TAIL, WIDTH)
            e = load_part(d_out, d_out_offset, valid, MAIN, TAIL, WIDTH)
            shift_tail += e
            scale_tail += e * u_tail
            g_tail = e * factor_tail
            mean_g += tl.sum(g_tail, axis=1)
            mean_gu += tl.sum(g_tail * u_tail, axis=1)
        mean_g = mean_g / WIDTH
        mean_gu = mean_gu / WIDTH
        part = finish_part(
            u_main, g_main, mean_g, mean_gu, rstd, d_h, d_h_offset, y, y_offset, gates_main, d_x, d_y, offset, valid,
            0, MAIN, WIDTH, HAS_D_H, HAS_GATE,
        )  # fmt: skip
        if HAS_GATE:
            gate_main += part
        if TAIL > 0:
            part = finish_part(
                u_tail, g_tail, mean_g, mean_gu, rstd, d_h, d_h_offset, y, y_offset, gates_tail, d_x, d_y, offset,
                valid, MAIN, TAIL, WIDTH, HAS_D_H, HAS_GATE,
            )  # fmt: skip
            if HAS_GATE:
                gate_tail += part

    partial += tl.program_id(0).to(tl.int64) * WIDTH
    # 2 * partial_size may pass 2^31 where partial_size does not, which is a constant where it is 1
    plane = tl.full([], 0, tl.int64) + partial_size
    store_vector(partial, tl.sum(shift_main, axis=0), 0, MAIN, WIDTH)
    store_vector(partial + plane, tl.sum(scale_main, axis=0), 0, MAIN, WIDTH)
    if HAS_GATE:
        store_vector(partial + 2 * plane, tl.sum(gate_main, axis=0), 0, MAIN, WIDTH)
    if TAIL > 0:
        store_vector(partial, tl.sum(shift_tail, axis=0), MAIN, TAIL, WIDTH)
        store_vector(partial + plane, tl.sum(scale_tail, axis=0), MAIN, TAIL, WIDTH)
        if HAS_GATE:
            store_vector(partial + 2 * plane, tl.sum(gate_tail, axis=0), MAIN, TAIL, WIDTH)
