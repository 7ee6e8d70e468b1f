"""Casts to and from float32 that are the same on a GPU and in Triton's interpreter."""

import triton
import triton.language as tl

from mmdit_kernels.dispatch import interpreting

INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def widen(x):
    """Return x in float32."""
    if INTERPRETED and x.dtype == tl.bfloat16:  # exact either way; the interpreter's own takes fifty times as long
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Return x, in float32, rounded to the nearest value of DTYPE, ties to even."""
    if INTERPRETED and x.dtype == tl.float32 and tl.bfloat16 == DTYPE:  # the interpreter's own cuts the low bits off
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        x = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)
