"""Norm and rotation of q or k ahead of the attention kernels, and back: each row is read and written once."""

import triton
import triton.language as tl

from mmdit_kernels.attention.tiles import load_tile, locate, norm_rotate, norm_rotate_backward, store_tile
from mmdit_kernels.casts import widen


@triton.jit
def rotation_kernel(
    x, out, weight, cos, sin, x_sb, x_sh, x_sn, x_sd, out_sb, out_sh, out_sn, cos_sb, sin_sb, heads, length,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_ROPE: tl.constexpr, EVEN: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """out = R(w x / rms(x)) of ROWS rows, for one head after the other: the tables stay in the cache next to the cores."""
    blocks = tl.cdiv(length, ROWS)
    batch = tl.program_id(0) // blocks
    start = (tl.program_id(0) % blocks) * ROWS
    rows = tl.arange(0, ROWS)
    limit = length - start
    if HAS_ROPE:
        cos += batch.to(tl.int64) * cos_sb + start.to(tl.int64) * HEAD_DIM
        sin += batch.to(tl.int64) * sin_sb + start.to(tl.int64) * HEAD_DIM
    for head in range(0, heads):
        one = tl.full([], 0, tl.int32) + head
        x_rows = locate(x, batch, one, x_sb, x_sh, ALIGNED) + start.to(tl.int64) * x_sn
        main, tail = load_tile(x_rows, x_sn, x_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN, ALIGNED)
        main, tail = norm_rotate(
            main, tail, weight, cos, sin, rows, limit, ROWS, MAIN, TAIL, HEAD_DIM, HAS_WEIGHT, HAS_ROPE
        )
        out_rows = locate(out, batch, one, out_sb, out_sh, True) + start.to(tl.int64) * out_sn
        store_tile(out_rows, out_sn, 1, rows, limit, main, tail, MAIN, TAIL, HEAD_DIM)


@triton.jit
def rotation_backward_kernel(
    g, x, d_x, d_weight, weight, cos, sin, g_sb, g_sh, g_sn, x_sb, x_sh, x_sn, x_sd, d_x_sb, d_x_sh, d_x_sn,
    cos_sb, sin_sb, heads, length,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_ROPE: tl.constexpr, EVEN: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The gradient of x from g, that of what the attention kernels took; and each head's share of the weight's."""
    blocks = tl.cdiv(length, ROWS)
    batch = tl.program_id(0) // blocks
    start = (tl.program_id(0) % blocks) * ROWS
    rows = tl.arange(0, ROWS)
    limit = length - start
    if HAS_ROPE:
        cos += batch.to(tl.int64) * cos_sb + start.to(tl.int64) * HEAD_DIM
        sin += batch.to(tl.int64) * sin_sb + start.to(tl.int64) * HEAD_DIM
    if HAS_WEIGHT:
        d_weight += tl.program_id(0).to(tl.int64) * heads * HEAD_DIM
    for head in range(0, heads):
        one = tl.full([], 0, tl.int32) + head
        g_rows = locate(g, batch, one, g_sb, g_sh, True) + start.to(tl.int64) * g_sn
        g_main, g_tail = load_tile(g_rows, g_sn, 1, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN, True)
        x_rows = locate(x, batch, one, x_sb, x_sh, ALIGNED) + start.to(tl.int64) * x_sn
        main, tail = load_tile(x_rows, x_sn, x_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN, ALIGNED)
        share = d_weight
        if HAS_WEIGHT:
            share += head * HEAD_DIM
        g_main, g_tail = norm_rotate_backward(
            widen(g_main), widen(g_tail), main, tail, weight, share, cos, sin, rows, limit, ROWS, MAIN, TAIL, HEAD_DIM,
            HAS_WEIGHT, HAS_ROPE,
        )  # fmt: skip
        d_x_rows = locate(d_x, batch, one, d_x_sb, d_x_sh, True) + start.to(tl.int64) * d_x_sn
        store_tile(d_x_rows, d_x_sn, 1, rows, limit, g_main, g_tail, MAIN, TAIL, HEAD_DIM)
