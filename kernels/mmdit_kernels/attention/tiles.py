"""Tiles of (rows, head dimension): loads and stores in two column parts, and the norm and rotation of q and k.

A head dimension other than a power of two is split in two, MAIN + TAIL columns wide: 72 is 64 + 16, of which 8 are masked.
With TAIL = 0 the second part is never touched, and functions return the first part instead.
"""

import triton
import triton.language as tl

from mmdit_kernels.casts import INTERPRETED, narrow, widen

RMS_EPS = tl.constexpr(1e-6)


@triton.jit
def dot(a, b, acc):
    """Return a b + acc in float32, with no TF32."""
    if INTERPRETED:  # the interpreter holds bfloat16 as integers and multiplies those
        a = widen(a)
        b = widen(b)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def dot_of_logits(a, b, acc):
    """Return a b + acc; float32 factors are multiplied in float64.

    Differences of these products are what counts, in an exponential: a product near 1000 is off by 1e-4 in float32.
    """
    if a.dtype == tl.float32:  # noqa: SIM108, triton's own statements
        product = tl.dot(a.to(tl.float64), b.to(tl.float64), acc, out_dtype=tl.float64)
    else:
        product = dot(a, b, acc)
    return product


@triton.jit
def locate(base, batch, head, stride_batch, stride_head, ALIGNED: tl.constexpr):
    """Return the pointer to one (batch, head); 64-bit, since B H N d may exceed 2^31 elements."""
    offset = batch.to(tl.int64) * stride_batch + head.to(tl.int64) * stride_head
    if ALIGNED:
        offset = tl.multiple_of(offset, 8)  # triton knows of divisibility by 16 only, and a head is 72 apart
    return base + offset


@triton.jit
def load_part(
    base, stride_row, stride_col, rows, limit, START: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    columns = START + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * stride_row + columns[None, :] * stride_col
    if START + WIDTH <= HEAD_DIM and EVEN:
        part = tl.load(pointers)
    elif START + WIDTH <= HEAD_DIM:
        part = tl.load(pointers, mask=rows[:, None] < limit, other=0.0)
    elif EVEN:
        part = tl.load(pointers, mask=columns[None, :] < HEAD_DIM, other=0.0)
    else:
        part = tl.load(pointers, mask=(rows[:, None] < limit) & (columns[None, :] < HEAD_DIM), other=0.0)
    return part


@triton.jit
def load_tile(
    base, stride_row, stride_col, rows, limit, MAIN: tl.constexpr, TAIL: tl.constexpr, HEAD_DIM: tl.constexpr,
    EVEN: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    if ALIGNED:
        stride_row = tl.multiple_of(stride_row, 8)
    main = load_part(base, stride_row, stride_col, rows, limit, 0, MAIN, HEAD_DIM, EVEN)
    tail = main
    if TAIL > 0:
        tail = load_part(base, stride_row, stride_col, rows, limit, MAIN, TAIL, HEAD_DIM, EVEN)
    return main, tail


@triton.jit
def store_part(
    base, stride_row, stride_col, rows, limit, part, START: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr
):
    columns = START + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * stride_row + columns[None, :] * stride_col
    mask = (rows[:, None] < limit) & (columns[None, :] < HEAD_DIM)
    tl.store(pointers, narrow(part, base.dtype.element_ty), mask=mask)


@triton.jit
def store_tile(
    base, stride_row, stride_col, rows, limit, main, tail, MAIN: tl.constexpr, TAIL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Store to a tensor of our own making, whose row stride is a multiple of 8."""
    stride_row = tl.multiple_of(stride_row, 8)
    store_part(base, stride_row, stride_col, rows, limit, main, 0, MAIN, HEAD_DIM)
    if TAIL > 0:
        store_part(base, stride_row, stride_col, rows, limit, tail, MAIN, TAIL, HEAD_DIM)


@triton.jit
def load_vector(base, START: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    columns = START + tl.arange(0, WIDTH)
    return widen(tl.load(base + columns, mask=columns < HEAD_DIM, other=0.0))


@triton.jit
def load_table(base, rows, limit, START: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Load rows of a contiguous (N, d) table of cosines or sines."""
    columns = START + tl.arange(0, WIDTH)
    mask = (rows[:, None] < limit) & (columns[None, :] < HEAD_DIM)
    return widen(tl.load(base + rows[:, None] * HEAD_DIM + columns[None, :], mask=mask, other=0.0))


@triton.jit
def rotate_pairs(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Map pairs (a, b) at (2i, 2i + 1) to (-b, a)."""
    a, b = tl.split(tl.reshape(x, [ROWS, WIDTH // 2, 2]))
    return tl.reshape(tl.join(-b, a), [ROWS, WIDTH])


@triton.jit
def inverse_rms(main, tail, TAIL: tl.constexpr, HEAD_DIM: tl.constexpr):
    squares = tl.sum(main * main, axis=1)
    if TAIL > 0:
        squares += tl.sum(tail * tail, axis=1)
    return tl.rsqrt(squares / HEAD_DIM + RMS_EPS)


@triton.jit
def norm_rotate(
    main, tail, weight, cos, sin, rows, limit, ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    HEAD_DIM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_ROPE: tl.constexpr,
):  # fmt: skip
    """x -> R(w x / rms(x)) in float32, returned in the dtype of x: what the matrix product takes."""
    dtype = main.dtype
    if HAS_WEIGHT or HAS_ROPE:
        main = widen(main)
        tail = widen(tail)
        if HAS_WEIGHT:
            rstd = inverse_rms(main, tail, TAIL, HEAD_DIM)
            main = main * rstd[:, None] * load_vector(weight, 0, MAIN, HEAD_DIM)[None, :]
            if TAIL > 0:
                tail = tail * rstd[:, None] * load_vector(weight, MAIN, TAIL, HEAD_DIM)[None, :]
        if HAS_ROPE:
            c = load_table(cos, rows, limit, 0, MAIN, HEAD_DIM)
            s = load_table(sin, rows, limit, 0, MAIN, HEAD_DIM)
            main = main * c + rotate_pairs(main, ROWS, MAIN) * s
            if TAIL > 0:
                c = load_table(cos, rows, limit, MAIN, TAIL, HEAD_DIM)
                s = load_table(sin, rows, limit, MAIN, TAIL, HEAD_DIM)
                tail = tail * c + rotate_pairs(tail, ROWS, TAIL) * s
    return narrow(main, dtype), narrow(tail, dtype)


@triton.jit
def norm_rotate_backward(
    g_main, g_tail, x_main, x_tail, weight, d_weight, cos, sin, rows, limit, ROWS: tl.constexpr, MAIN: tl.constexpr,
    TAIL: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_ROPE: tl.constexpr,
):  # fmt: skip
    """Pull a gradient back through ``norm_rotate``; store this tile's share of the weight's gradient at ``d_weight``.

    With u = x / rms(x) and g the gradient after the inverse rotation:
    dw = sum g u, dx = (w g - u mean(w g u)) / rms(x).
    """
    if HAS_ROPE:
        c = load_table(cos, rows, limit, 0, MAIN, HEAD_DIM)
        s = load_table(sin, rows, limit, 0, MAIN, HEAD_DIM)
        g_main = g_main * c - rotate_pairs(g_main * s, ROWS, MAIN)
        if TAIL > 0:
            c = load_table(cos, rows, limit, MAIN, TAIL, HEAD_DIM)
            s = load_table(sin, rows, limit, MAIN, TAIL, HEAD_DIM)
            g_tail = g_tail * c - rotate_pairs(g_tail * s, ROWS, TAIL)
    if HAS_WEIGHT:
        u_main = widen(x_main)
        u_tail = widen(x_tail)
        rstd = inverse_rms(u_main, u_tail, TAIL, HEAD_DIM)
        u_main = u_main * rstd[:, None]
        columns = tl.arange(0, MAIN)
        tl.store(d_weight + columns, tl.sum(g_main * u_main, axis=0), mask=columns < HEAD_DIM)
        g_main = g_main * load_vector(weight, 0, MAIN, HEAD_DIM)[None, :]
        mean = tl.sum(g_main * u_main, axis=1)
        if TAIL > 0:
            u_tail = u_tail * rstd[:, None]
            columns = MAIN + tl.arange(0, TAIL)
            tl.store(d_weight + columns, tl.sum(g_tail * u_tail, axis=0), mask=columns < HEAD_DIM)
            g_tail = g_tail * load_vector(weight, MAIN, TAIL, HEAD_DIM)[None, :]
            mean += tl.sum(g_tail * u_tail, axis=1)
        mean = mean / HEAD_DIM
        g_main = (g_main - u_main * mean[:, None]) * rstd[:, None]
        if TAIL > 0:
            g_tail = (g_tail - u_tail * mean[:, None]) * rstd[:, None]
    return g_main, g_tail
