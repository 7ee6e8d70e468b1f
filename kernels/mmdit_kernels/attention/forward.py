"""Attention, forward: one program per (batch, head, block of queries), online softmax over blocks of keys.

The logits' maximum and the logarithm of the sum are kept per row, the maximum in the logits' own unit: their sum alone
would lose the second in float32 once logits reach the thousands.
"""

import triton
import triton.language as tl

from mmdit_kernels.attention.tiles import dot, dot_of_logits, load_tile, locate, norm_rotate, store_tile
from mmdit_kernels.casts import narrow


@triton.jit
def attention_forward_kernel(
    q, k, v, out, stats, q_weight, k_weight, cos, sin, key_mask,
    q_sb, q_sh, q_sn, q_sd, k_sb, k_sh, k_sn, k_sd, v_sb, v_sh, v_sn, v_sd, out_sb, out_sh, out_sn,
    cos_sb, sin_sb, mask_sb, stats_size, heads, queries, keys, scale_log2,
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

    q = locate(q, batch, head, q_sb, q_sh, ALIGNED) + start.to(tl.int64) * q_sn
    k = locate(k, batch, head, k_sb, k_sh, ALIGNED)
    v = locate(v, batch, head, v_sb, v_sh, ALIGNED)
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

    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc_main = tl.zeros([BLOCK_M, MAIN], tl.float32)
    acc_tail = acc_main
    if TAIL > 0:
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)
    columns = tl.arange(0, BLOCK_N)
    for first in range(0, keys, BLOCK_N):
        left = keys - first
        k_main, k_tail = load_tile(k, k_sn, k_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        k_main, k_tail = norm_rotate(
            k_main, k_tail, k_weight, cos, sin, columns, left, BLOCK_N, MAIN, TAIL, HEAD_DIM, HAS_K_WEIGHT, HAS_ROPE
        )
        logits = dot_of_logits(q_main, tl.trans(k_main), None)
        if TAIL > 0:
            logits = dot_of_logits(q_tail, tl.trans(k_tail), logits)
        if HAS_MASK:
            attend = tl.load(key_mask + columns, mask=columns < left, other=0) != 0
            logits = tl.where(attend[None, :], logits, -float("inf"))
        elif not EVEN_N:
            logits = tl.where((columns < left)[None, :], logits, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(logits, axis=1).to(tl.float32))
        offset = new_maximum
        if HAS_MASK:
            offset = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        if q_main.dtype == tl.float32:
            weights = tl.exp2((logits - offset[:, None]).to(tl.float32) * scale_log2)
        else:
            weights = tl.exp2(logits * scale_log2 - (offset * scale_log2)[:, None])  # one multiply-add
        correction = tl.exp2((maximum - offset) * scale_log2)
        maximum = new_maximum
        total = total * correction + tl.sum(weights, axis=1)
        v_main, v_tail = load_tile(v, v_sn, v_sd, columns, left, MAIN, TAIL, HEAD_DIM, EVEN_N, ALIGNED)
        weights = narrow(weights, v_main.dtype)
        acc_main = dot(weights, v_main, acc_main * correction[:, None])
        if TAIL > 0:
            acc_tail = dot(weights, v_tail, acc_tail * correction[:, None])
        k += BLOCK_N * k_sn
        v += BLOCK_N * v_sn
        if HAS_ROPE:
            cos += BLOCK_N * HEAD_DIM
            sin += BLOCK_N * HEAD_DIM
        if HAS_MASK:
            key_mask += BLOCK_N

    log_total = tl.log2(total)
    inverse = 1.0 / total
    if HAS_MASK:
        # A row with nothing to attend to: zeros, and a log-sum of +inf makes its weights zero in the backward.
        empty = total == 0.0
        maximum = tl.where(empty, 0.0, maximum)
        log_total = tl.where(empty, float("inf"), log_total)
        inverse = tl.where(empty, 0.0, inverse)
    stats += pair.to(tl.int64) * queries + start
    tl.store(stats + rows, maximum, mask=rows < limit)
    tl.store(stats + stats_size + rows, log_total, mask=rows < limit)
    out = locate(out, batch, head, out_sb, out_sh, True) + start.to(tl.int64) * out_sn
    store_tile(
        out, out_sn, 1, rows, limit, acc_main * inverse[:, None], acc_tail * inverse[:, None], MAIN, TAIL, HEAD_DIM
    )
