"""The first run's tuning: a few tiles of the kernels in question, saved under the names that the kernels ask for."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from first_run_rows import OURS, Row, Sizes, interleave, short
from mmdit_kernels import tuning
from mmdit_kernels.adaln import configs as adaln_configs
from mmdit_kernels.adaln import jvp as adaln_jvp
from mmdit_kernels.adaln import launches as adaln
from mmdit_kernels.attention import configs as attention_configs
from mmdit_kernels.attention import jvp as attention_jvp
from mmdit_kernels.attention import launches as attention
from mmdit_kernels.launch import Launch

HEAD_DIM = 72
# Rows of queries, rows of keys, warps, stages, registers at most.
FORWARD = [
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (64, 64, 4, 3),
    (128, 128, 8, 2),
    (128, 32, 8, 3, 128),
    (128, 64, 8, 3, 128),
]
BACKWARD_Q = [(64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (64, 128, 8, 2)]
BACKWARD_KV = [(64, 128, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 3), (32, 128, 8, 2)]
# The backward in one pass; what is built in is then the two kernels, with the tiles found for them.
ONE_PASS = {"cuda": [(64, 128, 8, 2), (64, 128, 8, 3)], "cpu": [(8, 8, 4, 1)]}
JVP = [(64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2)]
# Tokens at a time, tokens in a program, warps, stages.
ADALN_FORWARD = [(1, 8, 4, 1), (1, 8, 2, 1), (2, 8, 4, 1), (2, 8, 8, 1), (1, 8, 8, 1)]
ADALN_BACKWARD = [(1, 64, 4, 3), (1, 64, 4, 2), (1, 32, 4, 3), (1, 64, 8, 2), (2, 64, 8, 3), (2, 16, 8, 2)]
ADALN_JVP = [(1, 4), (1, 2), (2, 4), (2, 8), (1, 8)]


class Work(NamedTuple):
    """One kernel: the start of its key, the module that asks for its tiles, and what builds its launches."""

    kernel: str
    shape: str
    dtype: str
    module: Any
    grid: list[tuple[int, ...]]
    build: Callable[[], list[Launch]]


def works_of(sizes: Sizes) -> Iterator[Work]:
    """Yield the kernels in question, one shape after the other."""
    half = torch.bfloat16
    (b, t), width = sizes.adaln, sizes.width
    gate, shift, scale = torch.randn(b, 3 * width, dtype=half, device=sizes.device).chunk(3, dim=1)
    y = torch.randn(b, t, width, dtype=half, device=sizes.device)
    d = HEAD_DIM if sizes.device == "cuda" else sizes.head_dims[-1]
    for n in sizes.lengths[:2]:
        shape = (max(1, sizes.tokens // n), n, 3, sizes.heads, d)
        qkv, dots = (torch.randn(shape, dtype=half, device=sizes.device).permute(2, 0, 3, 1, 4) for _ in range(2))
        inputs = attention.Inputs(*qkv, None, None, None, None, None, d**-0.5)
        launch, out, stats = attention.forward_launch(inputs)
        launch.run(inputs.q)
        d_out = torch.randn_like(out)

        def backward(index: int, inputs: Any = inputs, more: Any = (d_out, out, stats)) -> list[Launch]:
            return [attention.backward_launches(inputs, *more)[index]]

        def whole(inputs: Any = inputs, more: Any = (d_out, out, stats)) -> list[Launch]:
            found = attention.one_pass_launch(inputs, *more)
            return [found[0]] if found is not None else list(attention.backward_launches(inputs, *more)[:2])

        def tangent(inputs: Any = inputs, dots: Any = dots) -> list[Launch]:
            return [attention_jvp.jvp_launch(inputs, *dots)[0]]

        name = f"d{d} N{n}"
        start = lambda inputs=inputs: [attention.forward_launch(inputs)[0]]  # noqa: E731
        yield Work("attention_forward", name, "bfloat16", attention_configs, FORWARD, start)
        yield Work("attention_backward_q", name, "bfloat16", attention_configs, BACKWARD_Q, lambda b=backward: b(0))
        yield Work("attention_backward_kv", name, "bfloat16", attention_configs, BACKWARD_KV, lambda b=backward: b(1))
        if n <= 256:
            yield Work("attention_backward", name, "bfloat16", attention_configs, ONE_PASS[sizes.device], whole)
        yield Work("attention_jvp", name, "bfloat16", attention_jvp, JVP, tangent)
    for stream in (half, torch.float32) if sizes.device == "cuda" else (half,):
        x = torch.randn(b, t, width, dtype=stream, device=sizes.device)
        launch, h, _, stats = adaln.forward_launch(x, y, gate, shift, scale, 1e-6, stream, half)
        launch.run(x)

        def forward(x: Any = x) -> list[Launch]:
            return [adaln.forward_launch(x, y, gate, shift, scale, 1e-6, x.dtype, half)[0]]

        def gradient(h: Any = h, x: Any = x, stats: Any = stats) -> list[Launch]:
            return [adaln.backward_launch(h, y, x, y, gate, scale, stats, x.dtype)[0]]

        name, dtype = f"B{b} T{t} D{width}", "bfloat16" if stream == half else "float32 stream"
        yield Work("adaln_forward", name, dtype, adaln_configs, ADALN_FORWARD, forward)
        yield Work("adaln_backward", name, dtype, adaln_configs, ADALN_BACKWARD, gradient)
        if stream == half:
            primals = (x, y, gate, shift, scale)

            def moving(primals: Any = primals) -> list[Launch]:
                return [adaln_jvp.jvp_launch(primals, primals, 1e-6, half, half)[0]]

            yield Work("adaln_jvp", name, dtype, adaln_jvp, ADALN_JVP, moving)


def _compiles(launches: list[Launch]) -> str:
    """Compile into triton's cache; return why these tiles do not, or nothing."""
    try:
        for launch in launches:
            launch.kernel.warmup(*launch.arguments, grid=(launch.programs,), **launch.constants)
    except Exception as error:
        return short(error)
    return ""


def _run(launches: list[Launch], device_of: torch.Tensor) -> None:
    for launch in launches:
        launch.run(device_of)


def build_with(
    work: Work, values: tuple[int, ...] | None, others: dict[str, list[int]], asked: list[str]
) -> list[Launch]:
    """Build a kernel's launches with these tiles, None = those built in; other kernels have theirs. Keeps what was asked."""
    original = work.module.tuned

    def answer(key: str, device: torch.device | None = None) -> list[int] | None:
        if not key.startswith(f"{work.kernel}/"):
            return others.get(key)
        asked.append(key)
        return None if values is None else list(values)

    work.module.tuned = answer
    try:
        return work.build()
    finally:
        work.module.tuned = original


def tuning_rows(sizes: Sizes, section: str, path: Path) -> Iterator[Row]:
    """Time each kernel with each of its tiles, and with those built in; the fastest go to ``path``."""
    configs: dict[str, list[int]] = json.loads(path.read_text())["configs"] if path.is_file() else {}
    try:
        for work in works_of(sizes):
            asked: list[str] = []
            tiles = {str(tuple(values)): list(values) for values in work.grid[-sizes.tiles :]}
            ways = {"built in": build_with(work, None, configs, asked)}
            ways |= {name: build_with(work, tuple(values), configs, asked) for name, values in tiles.items()}
            problems = dict.fromkeys(ways, "")
            if sizes.device == "cuda":
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    problems = dict(zip(ways, pool.map(_compiles, ways.values()), strict=True))
            device_of = next(x for x in ways["built in"][0].arguments if isinstance(x, torch.Tensor))
            rows, calls = {}, {}
            for name, launches in ways.items():
                rows[name] = Row(section, work.kernel, work.shape, work.dtype, name, OURS, note=problems[name])
                if not problems[name]:
                    run = functools.partial(_run, launches, device_of)
                    calls[name] = lambda run=run: run  # type: ignore[misc]
            measured = list(interleave(rows, calls, sizes, seconds=2.0))
            best = min(
                (row for row in measured if row.milliseconds), key=lambda row: row.milliseconds or 0.0, default=None
            )
            if best is not None and best.direction in tiles:
                configs[asked[0]] = tiles[best.direction]
                best.verdict = "taken"
                path.write_text(json.dumps({"configs": configs}, indent=1))
            yield from measured
    finally:
        tuning._table.cache_clear()  # also where the time was over before the last kernel
