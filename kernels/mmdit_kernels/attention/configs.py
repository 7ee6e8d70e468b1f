"""Tile sizes of the attention kernels: a table by kernel, dtype and width; nothing is tuned while a program runs."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mmdit_kernels.tuning import bucket, tuned

MAXIMUM_HEAD_DIM = 128
KERNELS = ("forward", "backward_q", "backward_kv")


class Config(NamedTuple):
    """Rows of queries and of keys in one step, warps, stages of the software pipeline, registers of a thread at most."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int = 0  # 0 = what the compiler takes; 128 lets two blocks of eight warps share a multiprocessor


# The backward in one pass that spills nothing on sm_90, up to head dimension 80, with every triton that was tried.
ONE_PASS = Config(64, 128, 8, 3)


def column_parts(head_dim: int, dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    """Return the widths (main, tail) of the column tiles: 64 is (64, 0), 72 is (64, 16), 104 is (128, 0).

    In float32, with no tensor cores, a thread holds a whole row of each factor, so no part is wider than 64.
    """
    main = 16
    while 2 * main <= head_dim:
        main *= 2
    if dtype == torch.float32:
        main = min(main, 64)
    if head_dim <= main:
        return main, 0
    tail = 16
    while tail < head_dim - main:
        tail *= 2
    return (2 * main, 0) if tail == main and not (dtype == torch.float32 and main == 64) else (main, tail)


def select(
    kernel: str, target: str, dtype: torch.dtype, head_dim: int, queries: int, keys: int, transforms: bool, masked: bool,
    device: torch.device | None = None,
) -> Config:  # fmt: skip
    """Return the tiles of one kernel. ``transforms``: norm or rope run while loading; ``masked``: there is a key mask."""
    name = str(dtype).removeprefix("torch.")
    found = tuned(
        f"attention_{kernel}/{name}/d{head_dim}/n{bucket(queries)}/s{bucket(keys)}/t{int(transforms)}", device
    )
    if found is not None:
        return Config(*found)
    if target == "interpreter":
        return Config(64, 64, 4, 1)
    return shipped(kernel, target, dtype, head_dim, transforms, masked or queries % 128 != 0 or keys % 128 != 0)


def select_one_pass(
    dtype: torch.dtype, head_dim: int, queries: int, keys: int, transforms: bool, masked: bool,
    device: torch.device | None = None,
) -> Config | None:  # fmt: skip
    """Return the tiles of the backward in one pass, or None where the two kernels run.

    It runs where a measurement has found it to be faster. There is no built-in rule: on an H200 the two kernels are
    (kernels/README.md).
    """
    name = str(dtype).removeprefix("torch.")
    found = tuned(
        f"attention_backward/{name}/d{head_dim}/n{bucket(queries)}/s{bucket(keys)}/t{int(transforms)}", device
    )
    if found is None:
        return None
    config = Config(*found)
    return config if one_pass_takes(config, dtype, queries, keys, transforms, masked) else None


def one_pass_takes(config: Config, dtype: torch.dtype, queries: int, keys: int, transforms: bool, masked: bool) -> bool:
    """Tell whether the lengths are whole blocks, two of keys at the most, in half precision, with nothing besides."""
    whole = queries % config.block_m == 0 and keys % config.block_n == 0 and keys <= 2 * config.block_n
    return whole and dtype != torch.float32 and not transforms and not masked


def shipped(kernel: str, target: str, dtype: torch.dtype, head_dim: int, transforms: bool, partial: bool) -> Config:
    """Return the tiles of the table: what compiles with no spills and fits (tests/kernels/test_compile.py holds it).

    ``partial``: rows are masked, which takes a few registers more.
    """
    width = sum(column_parts(head_dim, dtype))
    amd = target.startswith("gfx")
    if dtype == torch.float32:
        # Left to itself the assembler aims at five blocks in 48 registers, and at some widths spills one to get there.
        return Config(16, 16, 4, 1) if amd else Config(16, 16, 8, 1, 255)
    asynchronous = target in ("sm_90", "sm_100", "sm_103")  # products that read shared memory, and 227 KiB of it
    blackwell = target in ("sm_100", "sm_103")
    split = 64 < width < 128  # a tail, whose columns are masked where rows may be too
    # Ampere's products read both factors from registers: the loop's own rows must be half as many where they are
    # transformed there, or masked.
    halved = not asynchronous and not amd and width > 64 and (transforms or (split and partial))
    if kernel == "forward":
        warps = 8 if width > 64 or transforms else 4
        crowded = transforms and partial and (blackwell or (amd and width > 96))
        if target == "sm_90" and split and not transforms:
            # Two blocks share a multiprocessor: 122 registers at the most with 32 keys. With 64 they have to be held to 128,
            # and an H200 is 9% faster at 256 tokens of d = 72, 15% at 1024 (benchmarks/results/h200.csv).
            return Config(128, 32, 8, 4) if partial or width > 80 else Config(128, 64, 8, 3, 128)
        # Left to itself the assembler aims at two blocks in 128 registers, and spills four to get there.
        registers = 255 if blackwell and split and partial and not transforms else 0
        stages = (2 if asynchronous else 1) if transforms or amd else 3
        return Config(128, 32 if halved or crowded else 64, warps, stages, registers)
    if amd:
        return Config(64, 32 if transforms else 64, 4, 1) if kernel == "backward_q" else Config(32, 64, 4, 1)
    if transforms:  # undoing norm and rope takes five more tiles in registers
        if target == "sm_90" and width <= 80:  # eight warps hold, and compute, a product of 64 rows twice
            if kernel == "backward_q":
                return Config(128, 32, 8, 3)
            if not (split and partial):
                return Config(32, 64, 4, 3)
        stages = 2 if asynchronous else 1
        if kernel == "backward_q":
            return Config(64, 32 if halved else 64, 8, stages)
        return Config(16 if halved else 32, 64, 8, stages)
    if target == "sm_90" and width <= 80:  # two blocks share a multiprocessor, and copies run ahead by a whole step
        if kernel == "backward_q":
            return Config(128, 32 if split else 64, 8, 3)
        return Config(32 if partial else 64, 64, 4, 3)
    stages = 3 if target == "sm_90" else 2
    if kernel == "backward_q":
        return Config(128 if asynchronous or not partial else 64, 32 if halved else 64, 8, stages)
    return Config(32 if width > 80 or partial else 64, 128 if asynchronous or not partial else 64, 8, stages)
