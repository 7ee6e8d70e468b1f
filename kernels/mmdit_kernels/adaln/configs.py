"""Tile sizes of the adaptive layer norm kernels, from the width and the number of tokens alone."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mmdit_kernels.tuning import bucket, tuned

MAXIMUM_WIDTH = 8192
KERNELS = ("forward", "backward")


class Config(NamedTuple):
    """Tokens at a time, tokens in one program, warps, stages of the software pipeline, and columns at a time."""

    rows: int
    chunk: int
    num_warps: int
    num_stages: int
    piece: int = 0  # 0 = the whole row


def column_parts(width: int) -> tuple[int, int]:
    """Return the widths (main, tail) of the column tiles: 1152 is (1024, 128), 768 is (512, 256), 1000 is (1024, 0)."""
    main = 16
    while 2 * main <= width:
        main *= 2
    if width <= main:
        return main, 0
    tail = 16
    while tail < width - main:
        tail *= 2
    return (2 * main, 0) if tail == main else (main, tail)


def key(kernel: str, stream: torch.dtype, other: torch.dtype, width: int, tokens: int) -> str:
    """Return the name of measured tiles: ``stream`` is the dtype of x or h, ``other`` that of the output or its gradient."""
    names = (str(dtype).removeprefix("torch.") for dtype in (stream, other))
    return f"adaln_{kernel}/{'-'.join(names)}/w{width}/t{bucket(tokens)}"


def select(
    kernel: str, target: str, stream: torch.dtype, other: torch.dtype, width: int, batch: int, tokens: int,
    device: torch.device | None = None,
) -> Config:  # fmt: skip
    """Return the tiles; the sums over tokens are split by shape alone, so that every GPU adds in the same order."""
    found = tuned(key(kernel, stream, other, width, batch * tokens), device)
    if found is not None:
        return Config(*found)
    if target == "interpreter":
        return Config(16, 32, 4, 1)
    return shipped(kernel, target, width, batch, tokens)


def shipped(kernel: str, target: str, width: int, batch: int, tokens: int) -> Config:
    """Return the tiles of the built-in rule: 8 to 16 elements per thread, and some hundreds of programs.

    In the backward a thread reads 16 bytes of the main part, in half precision, and two steps of the loop are under way.
    Measured on an H200 at D = 1152 alone (benchmarks/results/h200.csv): the forward takes 15% less time with 16 to 32 elements
    per thread (12% with a float32 stream); the backward of a float32 stream 19% less with 32 tokens to a program than with 64,
    which costs a bfloat16 one 2%. Where a row is taken in pieces there are 64, so that the sums of programs are fewer.
    """
    main, tail = column_parts(width)
    amd = target.startswith("gfx")
    longest = 2048 if amd else 4096  # a row and three sums of more are more than the registers
    in_pieces = kernel == "backward" and main + tail > longest
    chunk = 8
    while chunk < (64 if in_pieces else 32) and chunk * 512 < batch * tokens:
        chunk *= 2
    if in_pieces:
        return Config(1, chunk, 8, 1, 2048)
    rows = max(1, 2048 // (1 << (main + tail - 1).bit_length()))
    threads = rows * (main + tail) // 16 if kernel == "forward" else rows * main // 8
    warps = 4
    if kernel == "forward" and target == "sm_90" and 1024 < main + tail <= 2048:
        warps, threads = 2, threads // 2
    while warps * (64 if amd else 32) < threads and warps < 16:
        warps *= 2
    return Config(rows, max(chunk, rows), warps, 2 if amd else 3)
