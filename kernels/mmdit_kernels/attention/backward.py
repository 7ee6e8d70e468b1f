"""Attention, backward, in two kernels with no atomics: each gradient tile is owned by one program.

With P = softmax(s q k^T), D = rowsum(dO O):  dV = P^T dO,  dS = P (dO V^T - D),  dQ = s dS K,  dK = s dS^T Q
(FlashAttention, arXiv 2205.14135, appendix B.2). P is recomputed from the saved row statistics.
"""

import triton
import triton.language as tl

from mmdit_kernels.attention.tiles import (
    dot,
    dot_of_logits,
    load_tile,
    locate,
    norm_rotate,
    norm_rotate_backward,
    store_tile,
)
from mmdit_kernels.casts import narrow, widen


@triton.jit
def softmax_weights(logits, maximum, log_total, scale_log2, PRECISE: tl.constexpr):
    """P from logits and row statistics that broadcast against them."""
    if PRECISE:
        weights = tl.exp2((logits - maximum).to(tl.float32) * scale_log2 - log_total)
    else:
        weights = tl.exp2(logits * scale_log2 - (maximum * scale_log2 + log_total))
    return weights


@triton.jit
def dot_of_rows(a, b):
    """Row by row, sum a b: in the precision of ``dot_of_logits``, from whose results it is subtracted."""
    if a.dtype == tl.float32:  # noqa: SIM108, triton's own statements
        total = tl.sum(a.to(tl.float64) * b.to(tl.float64), axis=1)
    else:
        total = tl.sum(widen(a) * widen(b), axis=1)
    return total


@triton.jit
def attention_backward_q_kernel(
    q, k, v, out, d_out, stats, delta, d_q, d_q_weight, q_weight, k_weight, cos, sin, key_mask,
    q_sb, q_sh, q_sn, q_sd, k_sb, k_sh, k_sn, k_sd, v_sb, v_sh, v_sn, v_sd, out_sb, out_sh, out_sn,
    d_out_sb, d_out_sh, d_out_sn, d_out_sd, d_q_sb, d_q_sh, d_q_sn,
    cos_sb, sin_sb, mask_sb, stats_size, heads, queries, keys, scale, scale_log2,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr, HAS_K_WEIGHT: tl.constexpr, HAS_ROPE: tl.constexpr, HAS_MASK: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """dQ of one block of queries, its share of d q_weight, and delta = rowsum(dO O), which the other kernel reads."""
    blocks = tl.cdiv(queries, BLOCK_M)
    pair = tl.program_id(0) // blocks
    start = (tl.program_id(0) % blocks) * BLOCK_M
    batch = pair // heads
    head = pair % heads
    rows = tl.arange(0, BLOCK_M)
    limit = queries - start
    PRECISE: tl.constexpr = q.dtype.element_ty == tl.float32

    q = locate(q, batch, head, q_sb, q_sh, ALIGNED) + start.to(tl.int64) * q_sn
    k = locate(k, batch, head, k_sb, k_sh, ALIGNED)
    v = locate(v, batch, head, v_sb, v_sh, ALIGNED)
    out = locate(out, batch, head, out_sb, out_sh, True) + start.to(tl.int64) * out_sn
    d_out = locate(d_out, batch, head, d_out_sb, d_out_sh, ALIGNED) + start.to(tl.int64) * d_out_sn
    d_q = locate(d_q, batch, head, d_q_sb, d_q_sh, True) + start.to(tl.int64) * d_q_sn
    if HAS_ROPE:
        cos += batch.to(tl.int64) * cos_sb
        sin += batch.to(tl.int64) * sin_sb
    if HAS_MASK:
        key_mask += batch.to(tl.int64) * mask_sb
    q_cos = cos
    q_sin = sin
    if HAS_ROPE:
        q_cos += start.to(tl.int64) * HEAD_DIM
        q_sin += start.to(tl.int64) * HEAD_DIM

    q_main, q_tail = load_tile(q, q_sn, q_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN_M, ALIGNED)
    q_main, q_tail = norm_rotate(
        q_main, q_tail, q_weight, q_cos, q_sin, rows, limit, BLOCK_M, MAIN, TAIL, HEAD_DIM, HAS_Q_WEIGHT, HAS_ROPE
    )
    do_main, do_tail = load_tile(d_out, d_out_sn, d_out_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN_M, ALIGNED)
    out_main, out_tail = load_tile(out, out_sn, 1, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN_M, True)
    d = dot_of_rows(do_main, out_main)
    if TAIL > 0:
        d += dot_of_rows(do_tail, out_tail)
    row_offset = pair.to(tl.int64) * queries + start
    if not PRECISE:
        tl.store(delta + row_offset + rows, d, mask=rows < limit)
    maximum = tl.load(stats + row_offset + rows, mask=rows < limit, other=0.0)
    log_total = tl.load(stats + stats_size + row_offset + rows, mask=rows < limit, other=float("inf"))

    acc_main = tl.zeros([BLOCK_M, MAIN], tl.float32)
    acc_tail = acc_main
    if TAIL > 0:
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)
    if PRECISE:
        excess = tl.zeros([BLOCK_M], tl.float32)
        mean_main = acc_main
        mean_tail = acc_tail
    columns = tl.arange(0, BLOCK_N)
    for first in range(0, keys, BLOCK_N):
        left = keys - first
        k_main, k_tail = load_tile(k, k_sn, k_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        k_main, k_tail = norm_rotate(
            k_main, k_tail, k_weight, cos, sin, columns, left, BLOCK_N, MAIN, TAIL, HEAD_DIM, HAS_K_WEIGHT, HAS_ROPE
        )
        v_main, v_tail = load_tile(v, v_sn, v_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        logits = dot_of_logits(q_main, tl.trans(k_main), None)
        d_weights = dot_of_logits(do_main, tl.trans(v_main), None)
        if TAIL > 0:
            logits = dot_of_logits(q_tail, tl.trans(k_tail), logits)
            d_weights = dot_of_logits(do_tail, tl.trans(v_tail), d_weights)
        weights = softmax_weights(logits, maximum[:, None], log_total[:, None], scale_log2, PRECISE)
        if HAS_MASK:
            attend = tl.load(key_mask + columns, mask=columns < left, other=0) != 0
            weights = tl.where(attend[None, :], weights, 0.0)
        elif not EVEN_N:
            weights = tl.where((columns < left)[None, :], weights, 0.0)
        d_logits = narrow(weights * (d_weights - d[:, None]).to(tl.float32), k_main.dtype)
        acc_main = dot(d_logits, k_main, acc_main)
        if TAIL > 0:
            acc_tail = dot(d_logits, k_tail, acc_tail)
        if PRECISE:
            excess += tl.sum(d_logits, axis=1)
            mean_main = dot(weights, k_main, mean_main)
            if TAIL > 0:
                mean_tail = dot(weights, k_tail, mean_tail)
        k += BLOCK_N * k_sn
        v += BLOCK_N * v_sn
        if HAS_ROPE:
            cos += BLOCK_N * HEAD_DIM
            sin += BLOCK_N * HEAD_DIM
        if HAS_MASK:
            key_mask += BLOCK_N

    if PRECISE:
        # A row of dS adds up to zero. What it adds up to here is the rounding of O in D, too much for a row with one
        # large weight, whose dS is small: correct D by it, and dQ for the D that it was computed with.
        tl.store(delta + row_offset + rows, d + excess, mask=rows < limit)
        acc_main -= excess[:, None] * mean_main
        acc_tail -= excess[:, None] * mean_tail
    acc_main *= scale
    acc_tail *= scale
    if HAS_Q_WEIGHT:
        d_q_weight += tl.program_id(0).to(tl.int64) * HEAD_DIM
    if HAS_Q_WEIGHT or HAS_ROPE:
        q_main, q_tail = load_tile(q, q_sn, q_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN_M, ALIGNED)
        acc_main, acc_tail = norm_rotate_backward(
            acc_main, acc_tail, q_main, q_tail, q_weight, d_q_weight, q_cos, q_sin, rows,
            limit, BLOCK_M, MAIN, TAIL, HEAD_DIM, HAS_Q_WEIGHT, HAS_ROPE,
        )  # fmt: skip
    store_tile(d_q, d_q_sn, 1, rows, limit, acc_main, acc_tail, MAIN, TAIL, HEAD_DIM)


@triton.jit
def attention_backward_kv_kernel(
    q, k, v, d_out, stats, delta, d_k, d_v, d_k_weight, q_weight, k_weight, cos, sin, key_mask,
    q_sb, q_sh, q_sn, q_sd, k_sb, k_sh, k_sn, k_sd, v_sb, v_sh, v_sn, v_sd,
    d_out_sb, d_out_sh, d_out_sn, d_out_sd, d_k_sb, d_k_sh, d_k_sn, d_v_sb, d_v_sh, d_v_sn,
    cos_sb, sin_sb, mask_sb, stats_size, heads, queries, keys, scale, scale_log2,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr, HAS_K_WEIGHT: tl.constexpr, HAS_ROPE: tl.constexpr, HAS_MASK: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys, and its share of d k_weight; the logits are transposed, (keys, queries)."""
    blocks = tl.cdiv(keys, BLOCK_N)
    pair = tl.program_id(0) // blocks
    start = (tl.program_id(0) % blocks) * BLOCK_N
    batch = pair // heads
    head = pair % heads
    rows = tl.arange(0, BLOCK_N)
    limit = keys - start
    PRECISE: tl.constexpr = q.dtype.element_ty == tl.float32

    q = locate(q, batch, head, q_sb, q_sh, ALIGNED)
    k = locate(k, batch, head, k_sb, k_sh, ALIGNED) + start.to(tl.int64) * k_sn
    v = locate(v, batch, head, v_sb, v_sh, ALIGNED) + start.to(tl.int64) * v_sn
    d_out = locate(d_out, batch, head, d_out_sb, d_out_sh, ALIGNED)
    d_k = locate(d_k, batch, head, d_k_sb, d_k_sh, True) + start.to(tl.int64) * d_k_sn
    d_v = locate(d_v, batch, head, d_v_sb, d_v_sh, True) + start.to(tl.int64) * d_v_sn
    if HAS_ROPE:
        cos += batch.to(tl.int64) * cos_sb
        sin += batch.to(tl.int64) * sin_sb
    k_cos = cos
    k_sin = sin
    if HAS_ROPE:
        k_cos += start.to(tl.int64) * HEAD_DIM
        k_sin += start.to(tl.int64) * HEAD_DIM

    k_main, k_tail = load_tile(k, k_sn, k_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
    k_main, k_tail = norm_rotate(
        k_main, k_tail, k_weight, k_cos, k_sin, rows, limit, BLOCK_N, MAIN, TAIL, HEAD_DIM, HAS_K_WEIGHT, HAS_ROPE
    )
    v_main, v_tail = load_tile(v, v_sn, v_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
    if HAS_MASK:
        key_mask += batch.to(tl.int64) * mask_sb + start
        attend = tl.load(key_mask + rows, mask=rows < limit, other=0) != 0
    stats += pair.to(tl.int64) * queries
    delta += pair.to(tl.int64) * queries

    dk_main = tl.zeros([BLOCK_N, MAIN], tl.float32)
    dv_main = tl.zeros([BLOCK_N, MAIN], tl.float32)
    dk_tail = dk_main
    dv_tail = dv_main
    if TAIL > 0:
        dk_tail = tl.zeros([BLOCK_N, TAIL], tl.float32)
        dv_tail = tl.zeros([BLOCK_N, TAIL], tl.float32)
    columns = tl.arange(0, BLOCK_M)
    for first in range(0, queries, BLOCK_M):
        left = queries - first
        q_main, q_tail = load_tile(q, q_sn, q_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_M, ALIGNED)
        q_main, q_tail = norm_rotate(
            q_main, q_tail, q_weight, cos, sin, columns, left, BLOCK_M, MAIN, TAIL, HEAD_DIM, HAS_Q_WEIGHT, HAS_ROPE
        )
        do_main, do_tail = load_tile(d_out, d_out_sn, d_out_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_M, ALIGNED)
        if EVEN_M:
            maximum = tl.load(stats + columns)
            log_total = tl.load(stats + stats_size + columns)
            d = tl.load(delta + columns)
        else:
            maximum = tl.load(stats + columns, mask=columns < left, other=0.0)
            log_total = tl.load(stats + stats_size + columns, mask=columns < left, other=float("inf"))
            d = tl.load(delta + columns, mask=columns < left, other=0.0)
        logits = dot_of_logits(k_main, tl.trans(q_main), None)
        d_weights = dot_of_logits(v_main, tl.trans(do_main), None)
        if TAIL > 0:
            logits = dot_of_logits(k_tail, tl.trans(q_tail), logits)
            d_weights = dot_of_logits(v_tail, tl.trans(do_tail), d_weights)
        weights = softmax_weights(logits, maximum[None, :], log_total[None, :], scale_log2, PRECISE)
        if HAS_MASK:
            weights = tl.where(attend[:, None], weights, 0.0)
        rounded = narrow(weights, do_main.dtype)
        d_logits = narrow(weights * (d_weights - d[None, :]).to(tl.float32), q_main.dtype)
        dv_main = dot(rounded, do_main, dv_main)
        dk_main = dot(d_logits, q_main, dk_main)
        if TAIL > 0:
            dv_tail = dot(rounded, do_tail, dv_tail)
            dk_tail = dot(d_logits, q_tail, dk_tail)
        q += BLOCK_M * q_sn
        d_out += BLOCK_M * d_out_sn
        stats += BLOCK_M
        delta += BLOCK_M
        if HAS_ROPE:
            cos += BLOCK_M * HEAD_DIM
            sin += BLOCK_M * HEAD_DIM

    store_tile(d_v, d_v_sn, 1, rows, limit, dv_main, dv_tail, MAIN, TAIL, HEAD_DIM)
    dk_main *= scale
    dk_tail *= scale
    if HAS_K_WEIGHT:
        d_k_weight += tl.program_id(0).to(tl.int64) * HEAD_DIM
        # Rows past the last key hold exp of anything, up to inf; the sum over rows below must not see them.
        dk_main = tl.where((rows < limit)[:, None], dk_main, 0.0)
        dk_tail = tl.where((rows < limit)[:, None], dk_tail, 0.0)
    if HAS_K_WEIGHT or HAS_ROPE:
        k_main, k_tail = load_tile(k, k_sn, k_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        dk_main, dk_tail = norm_rotate_backward(
            dk_main, dk_tail, k_main, k_tail, k_weight, d_k_weight, k_cos, k_sin, rows,
            limit, BLOCK_N, MAIN, TAIL, HEAD_DIM, HAS_K_WEIGHT, HAS_ROPE,
        )  # fmt: skip
    store_tile(d_k, d_k_sn, 1, rows, limit, dk_main, dk_tail, MAIN, TAIL, HEAD_DIM)
