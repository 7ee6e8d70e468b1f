"""Tile sizes of the adaptive layer norm kernels, from the width and the number of tokens alone."""

from __future__ import annotations

from typing import NamedTuple

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


def select(kernel: str, target: str, width: int, batch: int, tokens: int) -> Config:
    """Return the tiles; the sums over tokens are split by shape alone, so that every GPU adds in the same order."""
    found = tuned(f"adaln_{kernel}/w{width}/t{bucket(batch * tokens)}")
    if found is not None:
        return Config(*found)
    if target == "interpreter":
        return Config(16, 32, 4, 1)
    return shipped(kernel, target, width, batch, tokens)


def shipped(kernel: str, target: str, width: int, batch: int, tokens: int) -> Config:
    """Return the tiles of the built-in rule: about 16 elements per thread, and some hundreds of programs."""
    columns = sum(column_parts(width))
    per_thread = 16 if kernel == "forward" else 8
    rows = max(1, 2048 // (1 << (columns - 1).bit_length()))
    chunk = 8
    while chunk < 64 and chunk * 512 < batch * tokens:
        chunk *= 2
    # Rows over 4096 columns wait in shared memory where a block may have 227 KiB. Elsewhere a row and three sums over
    # tokens are more than the registers of a block: the backward takes a piece of the columns at a time.
    staged = target in ("sm_90", "sm_100", "sm_103") or rows * columns <= 4096
    if kernel == "backward" and not staged:
        return Config(1, chunk, 8, 1, 2048)
    threads, limit = (64, 16) if target.startswith("gfx") else (32, 16 if staged else 32)
    warps = 4
    while warps * threads * per_thread < rows * columns and warps < limit:
        warps *= 2
    return Config(rows, max(chunk, rows), warps, 2 if staged else 1)
