"""Attention and its derivative along a direction: one program per (batch, head, block of queries), both online.

With s = q' k'^T and p = softmax(scale s), and a dot for the tangent,

    s. = q'. k'^T + q' k'.^T        o. = sum_j p_j (v_j. + scale (s_j. - c) v_j),  c = sum_j p_j s_j.

c is kept per row as a running mean, and what has been added up with the mean before is moved to the new one. Subtracting
c at the end instead would cancel most digits of a row with one large weight, whose s. - c is almost zero.
"""

import triton
import triton.language as tl

from mmdit_kernels.attention.tiles import (
    dot,
    dot_of_logits,
    inverse_rms,
    load_table,
    load_tile,
    load_vector,
    locate,
    rotate_pairs,
    store_tile,
)
from mmdit_kernels.casts import narrow, widen


@triton.jit
def norm_part(x, x_dot, weight, rstd, mean, START: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    """One part of w u and of its tangent; x is u = x / rms(x) already, and mean that of u x_dot over the row."""
    w = load_vector(weight, START, WIDTH, HEAD_DIM)[None, :]
    return x * w, (x_dot - x * mean[:, None]) * rstd[:, None] * w


@triton.jit
def rotate_part(x, x_dot, cos, sin, rows, limit, ROWS: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr,
                HEAD_DIM: tl.constexpr):  # fmt: skip
    c = load_table(cos, rows, limit, START, WIDTH, HEAD_DIM)
    s = load_table(sin, rows, limit, START, WIDTH, HEAD_DIM)
    return x * c + rotate_pairs(x, ROWS, WIDTH) * s, x_dot * c + rotate_pairs(x_dot, ROWS, WIDTH) * s


@triton.jit
def norm_rotate_dual(
    main, tail, main_dot, tail_dot, weight, cos, sin, rows, limit, ROWS: tl.constexpr, MAIN: tl.constexpr,
    TAIL: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_ROPE: tl.constexpr,
):  # fmt: skip
    """x -> R(w u) with u = x / rms(x), and its tangent R(w (x. - u mean(u x.)) / rms(x)), in the dtype of x."""
    dtype = main.dtype
    if HAS_WEIGHT or HAS_ROPE:
        main = widen(main)
        tail = widen(tail)
        main_dot = widen(main_dot)
        tail_dot = widen(tail_dot)
        if HAS_WEIGHT:
            rstd = inverse_rms(main, tail, TAIL, HEAD_DIM)
            main = main * rstd[:, None]
            mean = tl.sum(main * main_dot, axis=1)
            if TAIL > 0:
                tail = tail * rstd[:, None]
                mean += tl.sum(tail * tail_dot, axis=1)
            mean = mean / HEAD_DIM
            main, main_dot = norm_part(main, main_dot, weight, rstd, mean, 0, MAIN, HEAD_DIM)
            if TAIL > 0:
                tail, tail_dot = norm_part(tail, tail_dot, weight, rstd, mean, MAIN, TAIL, HEAD_DIM)
        if HAS_ROPE:
            main, main_dot = rotate_part(main, main_dot, cos, sin, rows, limit, ROWS, 0, MAIN, HEAD_DIM)
            if TAIL > 0:
                tail, tail_dot = rotate_part(tail, tail_dot, cos, sin, rows, limit, ROWS, MAIN, TAIL, HEAD_DIM)
    return narrow(main, dtype), narrow(tail, dtype), narrow(main_dot, dtype), narrow(tail_dot, dtype)


@triton.jit
def tangent_of_sum(sum_dot, acc, weights, rates, values, values_dot, correction, moved, PRECISE: tl.constexpr):
    """Add a block of keys to o.; acc is o before this block, moved what the step of the mean takes off, per row of it.

    Taken off first, it makes the LLVM of triton 3.9 abort in float32 (sm_90, sm_100); taken off last, bfloat16 spills on sm_100.
    """
    sum_dot = sum_dot * correction[:, None]
    if not PRECISE:
        sum_dot -= acc * moved
    sum_dot = dot(weights, values_dot, dot(rates, values, sum_dot))
    if PRECISE:
        sum_dot -= acc * moved
    return sum_dot


@triton.jit
def attention_jvp_kernel(
    q, k, v, q_dot, k_dot, v_dot, out, out_dot, stats, q_weight, k_weight, cos, sin, key_mask,
    q_sb, q_sh, q_sn, q_sd, k_sb, k_sh, k_sn, k_sd, v_sb, v_sh, v_sn, v_sd,
    q_dot_sb, q_dot_sh, q_dot_sn, q_dot_sd, k_dot_sb, k_dot_sh, k_dot_sn, k_dot_sd,
    v_dot_sb, v_dot_sh, v_dot_sn, v_dot_sd, out_sb, out_sh, out_sn,
    cos_sb, sin_sb, mask_sb, stats_size, heads, queries, keys, scale, scale_log2,
    HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_Q_WEIGHT: tl.constexpr, HAS_K_WEIGHT: tl.constexpr, HAS_ROPE: tl.constexpr, HAS_MASK: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
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
    q_dot = locate(q_dot, batch, head, q_dot_sb, q_dot_sh, ALIGNED) + start.to(tl.int64) * q_dot_sn
    k_dot = locate(k_dot, batch, head, k_dot_sb, k_dot_sh, ALIGNED)
    v_dot = locate(v_dot, batch, head, v_dot_sb, v_dot_sh, ALIGNED)
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
    qd_main, qd_tail = load_tile(q_dot, q_dot_sn, q_dot_sd, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN_M, ALIGNED)
    q_main, q_tail, qd_main, qd_tail = norm_rotate_dual(
        q_main, q_tail, qd_main, qd_tail, q_weight, q_cos, q_sin, rows, limit, BLOCK_M, MAIN, TAIL, HEAD_DIM,
        HAS_Q_WEIGHT, HAS_ROPE,
    )  # fmt: skip

    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mean = tl.zeros([BLOCK_M], tl.float64 if PRECISE else tl.float32)
    acc_main = tl.zeros([BLOCK_M, MAIN], tl.float32)
    dot_main = tl.zeros([BLOCK_M, MAIN], tl.float32)
    acc_tail = acc_main
    dot_tail = dot_main
    if TAIL > 0:
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)
        dot_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)
    columns = tl.arange(0, BLOCK_N)
    for first in range(0, keys, BLOCK_N):
        left = keys - first
        k_main, k_tail = load_tile(k, k_sn, k_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        kd_main, kd_tail = load_tile(k_dot, k_dot_sn, k_dot_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        k_main, k_tail, kd_main, kd_tail = norm_rotate_dual(
            k_main, k_tail, kd_main, kd_tail, k_weight, cos, sin, columns, left, BLOCK_N, MAIN, TAIL, HEAD_DIM,
            HAS_K_WEIGHT, HAS_ROPE,
        )  # fmt: skip
        logits = dot_of_logits(q_main, tl.trans(k_main), None)
        slopes = dot_of_logits(qd_main, tl.trans(k_main), None)
        slopes = dot_of_logits(q_main, tl.trans(kd_main), slopes)
        if TAIL > 0:
            logits = dot_of_logits(q_tail, tl.trans(k_tail), logits)
            slopes = dot_of_logits(qd_tail, tl.trans(k_tail), slopes)
            slopes = dot_of_logits(q_tail, tl.trans(kd_tail), slopes)
        if HAS_MASK:
            attend = tl.load(key_mask + columns, mask=columns < left, other=0) != 0
            logits = tl.where(attend[None, :], logits, -float("inf"))
        elif not EVEN_N:
            logits = tl.where((columns < left)[None, :], logits, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(logits, axis=1).to(tl.float32))
        offset = new_maximum
        if HAS_MASK:
            offset = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        if PRECISE:
            weights = tl.exp2((logits - offset[:, None]).to(tl.float32) * scale_log2)
        else:
            weights = tl.exp2(logits * scale_log2 - (offset * scale_log2)[:, None])
        correction = tl.exp2((maximum - offset) * scale_log2)
        maximum = new_maximum
        total = total * correction + tl.sum(weights, axis=1)
        divisor = total
        if HAS_MASK:
            divisor = tl.where(total == 0.0, 1.0, total)
        step = tl.sum(weights * (slopes - mean[:, None]), axis=1) / divisor
        mean += step
        moved = (step.to(tl.float32) * scale * correction)[:, None]
        rates = weights * ((slopes - mean[:, None]).to(tl.float32) * scale)

        v_main, v_tail = load_tile(v, v_sn, v_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        vd_main, vd_tail = load_tile(v_dot, v_dot_sn, v_dot_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        weights = narrow(weights, v_main.dtype)
        rates = narrow(rates, v_main.dtype)
        dot_main = tangent_of_sum(dot_main, acc_main, weights, rates, v_main, vd_main, correction, moved, PRECISE)
        acc_main = dot(weights, v_main, acc_main * correction[:, None])
        if TAIL > 0:
            dot_tail = tangent_of_sum(dot_tail, acc_tail, weights, rates, v_tail, vd_tail, correction, moved, PRECISE)
            acc_tail = dot(weights, v_tail, acc_tail * correction[:, None])
        k += BLOCK_N * k_sn
        v += BLOCK_N * v_sn
        k_dot += BLOCK_N * k_dot_sn
        v_dot += BLOCK_N * v_dot_sn
        if HAS_ROPE:
            cos += BLOCK_N * HEAD_DIM
            sin += BLOCK_N * HEAD_DIM
        if HAS_MASK:
            key_mask += BLOCK_N

    log_total = tl.log2(total)
    inverse = 1.0 / total
    if HAS_MASK:  # a row with nothing to attend to, as in the forward: zeros, and a log-sum of +inf
        empty = total == 0.0
        maximum = tl.where(empty, 0.0, maximum)
        log_total = tl.where(empty, float("inf"), log_total)
        inverse = tl.where(empty, 0.0, inverse)
    stats += pair.to(tl.int64) * queries + start
    tl.store(stats + rows, maximum, mask=rows < limit)
    tl.store(stats + stats_size + rows, log_total, mask=rows < limit)
    out = locate(out, batch, head, out_sb, out_sh, True) + start.to(tl.int64) * out_sn
    out_dot = locate(out_dot, batch, head, out_sb, out_sh, True) + start.to(tl.int64) * out_sn
    store_tile(
        out, out_sn, 1, rows, limit, acc_main * inverse[:, None], acc_tail * inverse[:, None], MAIN, TAIL,
        HEAD_DIM,
    )  # fmt: skip
    store_tile(
        out_dot, out_sn, 1, rows, limit, dot_main * inverse[:, None], dot_tail * inverse[:, None], MAIN, TAIL,
        HEAD_DIM,
    )  # fmt: skip
