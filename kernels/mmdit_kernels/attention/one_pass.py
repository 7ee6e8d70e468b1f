"""Attention, backward, in one pass: a program owns a (batch, head), and holds a block of keys while the queries pass by.

dK and dV of a block of keys are whole when the queries have passed. dQ is whole after the last block of keys: until then its
sums wait in memory, in float32, for the program that wrote them; so nothing is added by anybody else, and a repeat gives the
same bits. Five products do what takes the two kernels of ``backward.py`` seven.

For half precision, whole blocks and no more than two of keys; norm, rotation and masks would not fit into the registers.
"""

import triton
import triton.language as tl

from mmdit_kernels.attention.backward import dot_of_rows
from mmdit_kernels.attention.tiles import dot, load_part, load_tile, locate, store_part, store_tile
from mmdit_kernels.casts import narrow


@triton.jit
def pass_queries(
    q, d_out, out, d_q, stats, delta, sums, k_main, k_tail, v_main, v_tail, q_sn, q_sd, d_out_sn, d_out_sd, out_sn, d_q_sn,
    stats_size, queries, scale, scale_log2, log_unit,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Return dK and dV of a block of keys; store dQ at the ``LAST`` one, its sums before, D = rowsum(dO O) at the ``FIRST``."""
    dk_main = tl.zeros([BLOCK_N, MAIN], tl.float32)
    dv_main = tl.zeros([BLOCK_N, MAIN], tl.float32)
    dk_tail = dk_main
    dv_tail = dv_main
    if TAIL > 0:
        dk_tail = tl.zeros([BLOCK_N, TAIL], tl.float32)
        dv_tail = tl.zeros([BLOCK_N, TAIL], tl.float32)
    columns = tl.arange(0, BLOCK_M)
    for first in range(0, queries, BLOCK_M):
        # Every address is computed from ``first``: pointers that are carried along would each keep two registers.
        step = tl.full([], 0, tl.int64) + first
        q_main, q_tail = load_tile(q + step * q_sn, q_sn, q_sd, columns, BLOCK_M, MAIN, TAIL, HEAD_DIM, True, ALIGNED)
        do_main, do_tail = load_tile(
            d_out + step * d_out_sn, d_out_sn, d_out_sd, columns, BLOCK_M, MAIN, TAIL, HEAD_DIM, True, ALIGNED
        )
        maximum = tl.load(stats + first + columns)
        log_total = tl.load(stats + stats_size + first + columns)
        if FIRST:
            out_main, out_tail = load_tile(
                out + step * out_sn, out_sn, 1, columns, BLOCK_M, MAIN, TAIL, HEAD_DIM, True, True
            )
            d = dot_of_rows(do_main, out_main)
            if TAIL > 0:
                d += dot_of_rows(do_tail, out_tail)
            if not LAST:
                tl.store(delta + first + columns, d)
        else:
            d = tl.load(delta + first + columns)
        # What is subtracted is where the sums of products begin: a vector of it held beside them would take 16 registers.
        offset = maximum + log_total * log_unit
        logits = dot(k_main, tl.trans(q_main), tl.broadcast_to(-offset[None, :], (BLOCK_N, BLOCK_M)))
        d_weights = dot(v_main, tl.trans(do_main), tl.broadcast_to(-d[None, :], (BLOCK_N, BLOCK_M)))
        if TAIL > 0:
            logits = dot(k_tail, tl.trans(q_tail), logits)
            d_weights = dot(v_tail, tl.trans(do_tail), d_weights)
        weights = tl.exp2(logits * scale_log2)
        rounded = narrow(weights, do_main.dtype)
        d_logits = narrow(weights * d_weights, q_main.dtype)
        dv_main = dot(rounded, do_main, dv_main)
        dk_main = dot(d_logits, q_main, dk_main)
        dq_main = dot(tl.trans(d_logits), k_main, None)
        dq_tail = dq_main
        if TAIL > 0:
            dv_tail = dot(rounded, do_tail, dv_tail)
            dk_tail = dot(d_logits, q_tail, dk_tail)
            dq_tail = dot(tl.trans(d_logits), k_tail, None)
        rows = sums + first * HEAD_DIM
        if not FIRST:
            dq_main += load_part(rows, HEAD_DIM, 1, columns, BLOCK_M, 0, MAIN, HEAD_DIM, True)
            if TAIL > 0:
                dq_tail += load_part(rows, HEAD_DIM, 1, columns, BLOCK_M, MAIN, TAIL, HEAD_DIM, True)
        if LAST:
            store_tile(
                d_q + step * d_q_sn, d_q_sn, 1, columns, BLOCK_M, dq_main * scale, dq_tail * scale, MAIN, TAIL, HEAD_DIM
            )
        else:
            store_part(rows, HEAD_DIM, 1, columns, BLOCK_M, dq_main, 0, MAIN, HEAD_DIM)
            if TAIL > 0:
                store_part(rows, HEAD_DIM, 1, columns, BLOCK_M, dq_tail, MAIN, TAIL, HEAD_DIM)
    return dk_main, dk_tail, dv_main, dv_tail


@triton.jit
def attention_backward_kernel(
    q, k, v, out, d_out, stats, delta, sums, d_q, d_k, d_v,
    q_sb, q_sh, q_sn, q_sd, k_sb, k_sh, k_sn, k_sd, v_sb, v_sh, v_sn, v_sd, out_sb, out_sh, out_sn,
    d_out_sb, d_out_sh, d_out_sn, d_out_sd, d_q_sb, d_q_sh, d_q_sn, d_k_sb, d_k_sh, d_k_sn, d_v_sb, d_v_sh, d_v_sn,
    stats_size, heads, queries, scale, scale_log2, log_unit,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """dQ, dK and dV of one (batch, head); the keys are BLOCKS blocks, the logits transposed: (keys, queries)."""
    pair = tl.program_id(0)
    batch = pair // heads
    head = pair % heads
    q = locate(q, batch, head, q_sb, q_sh, ALIGNED)
    k = locate(k, batch, head, k_sb, k_sh, ALIGNED)
    v = locate(v, batch, head, v_sb, v_sh, ALIGNED)
    out = locate(out, batch, head, out_sb, out_sh, True)
    d_out = locate(d_out, batch, head, d_out_sb, d_out_sh, ALIGNED)
    d_q = locate(d_q, batch, head, d_q_sb, d_q_sh, True)
    d_k = locate(d_k, batch, head, d_k_sb, d_k_sh, True)
    d_v = locate(d_v, batch, head, d_v_sb, d_v_sh, True)
    stats += pair.to(tl.int64) * queries
    if BLOCKS > 1:
        delta += pair.to(tl.int64) * queries
        sums += pair.to(tl.int64) * queries * HEAD_DIM
    for block in tl.static_range(BLOCKS):
        rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
        limit = (block + 1) * BLOCK_N
        k_main, k_tail = load_tile(k, k_sn, k_sd, rows, limit, MAIN, TAIL, HEAD_DIM, True, ALIGNED)
        v_main, v_tail = load_tile(v, v_sn, v_sd, rows, limit, MAIN, TAIL, HEAD_DIM, True, ALIGNED)
        dk_main, dk_tail, dv_main, dv_tail = pass_queries(
            q, d_out, out, d_q, stats, delta, sums, k_main, k_tail, v_main, v_tail,
            q_sn, q_sd, d_out_sn, d_out_sd, out_sn, d_q_sn, stats_size, queries, scale, scale_log2, log_unit,
            HEAD_DIM, MAIN, TAIL, BLOCK_M, BLOCK_N, block == 0, block == BLOCKS - 1, ALIGNED,
        )  # fmt: skip
        store_tile(d_v, d_v_sn, 1, rows, limit, dv_main, dv_tail, MAIN, TAIL, HEAD_DIM)
        store_tile(d_k, d_k_sn, 1, rows, limit, dk_main * scale, dk_tail * scale, MAIN, TAIL, HEAD_DIM)
        if block < BLOCKS - 1:
            tl.debug_barrier()  # what some threads of this program wrote, others read
