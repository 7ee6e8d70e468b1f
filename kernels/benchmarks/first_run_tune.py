"""The first run's tuning: a few tiles of the kernels in question, saved under the names that the kernels ask for."""

from __future__ import annotations

import contextlib
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
JVP = [(64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2)]
# Tokens at a time, tokens in a program, warps, stages.
ADALN_FORWARD = [(1, 8, 4, 1), (1, 8, 2, 1), (2, 8, 4, 1), (2, 8, 8, 1), (1, 8, 8, 1)]
ADALN_BACKWARD = [(1, 64, 4, 3), (1, 64, 4, 2), (1, 32, 4, 3), (1, 64, 8, 2), (2, 64, 8, 3), (2, 16, 8, 2)]
ADALN_JVP = [(1, 4), (1, 2), (2, 4), (2, 8), (1, 8)]


class Work(NamedTuple):
    """One kernel: the start of its key, the module that asks for its tiles, and what builds its launch."""

    kernel: str
    shape: str
    dtype: str
    module: Any
    grid: list[tuple[int, ...]]
    build: Callable[[], Launch]


@contextlib.contextmanager
def forced(module: Any, values: tuple[int, ...], asked: list[str]) -> Iterator[None]:
    """Let ``module.tuned`` answer with these tiles whatever is asked, and keep the keys."""
    original = module.tuned

    def answer(key: str, device: torch.device | None = None) -> list[int]:
        asked.append(key)
        return list(values)

    module.tuned = answer
    try:
        yield
    finally:
        module.tuned = original


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

        def backward(index: int, inputs: Any = inputs, more: Any = (d_out, out, stats)) -> Launch:
            return attention.backward_launches(inputs, *more)[index]

        def tangent(inputs: Any = inputs, dots: Any = dots) -> Launch:
            return attention_jvp.jvp_launch(inputs, *dots)[0]

        name = f"d{d} N{n}"
        start = lambda inputs=inputs: attention.forward_launch(inputs)[0]  # noqa: E731
        yield Work("attention_forward", name, "bfloat16", attention_configs, FORWARD, start)
        yield Work("attention_backward_q", name, "bfloat16", attention_configs, BACKWARD_Q, lambda b=backward: b(0))
        yield Work("attention_backward_kv", name, "bfloat16", attention_configs, BACKWARD_KV, lambda b=backward: b(1))
        yield Work("attention_jvp", name, "bfloat16", attention_jvp, JVP, tangent)
    for stream in (half, torch.float32) if sizes.device == "cuda" else (half,):
        x = torch.randn(b, t, width, dtype=stream, device=sizes.device)
        launch, h, _, stats = adaln.forward_launch(x, y, gate, shift, scale, 1e-6, stream, half)
        launch.run(x)

        def forward(x: Any = x) -> Launch:
            return adaln.forward_launch(x, y, gate, shift, scale, 1e-6, x.dtype, half)[0]

        def gradient(h: Any = h, x: Any = x, stats: Any = stats) -> Launch:
            return adaln.backward_launch(h, y, x, y, gate, scale, stats, x.dtype)[0]

        name, dtype = f"B{b} T{t} D{width}", "bfloat16" if stream == half else "float32 stream"
        yield Work("adaln_forward", name, dtype, adaln_configs, ADALN_FORWARD, forward)
        yield Work("adaln_backward", name, dtype, adaln_configs, ADALN_BACKWARD, gradient)
        if stream == half:
            primals = (x, y, gate, shift, scale)

            def moving(primals: Any = primals) -> Launch:
                return adaln_jvp.jvp_launch(primals, primals, 1e-6, half, half)[0]

            yield Work("adaln_jvp", name, dtype, adaln_jvp, ADALN_JVP, moving)


def _compiles(launch: Launch) -> str:
    """Compile into triton's cache; return why these tiles do not, or nothing."""
    try:
        launch.kernel.warmup(*launch.arguments, grid=(launch.programs,), **launch.constants)
    except Exception as error:
        return short(error)
    return ""


def tuning_rows(sizes: Sizes, section: str, path: Path) -> Iterator[Row]:
    """Time each kernel with each of its tiles, and with those built in; the fastest go to ``path``."""
    configs: dict[str, list[int]] = json.loads(path.read_text())["configs"] if path.is_file() else {}
    try:
        for work in works_of(sizes):
            launches, keys, tiles = {"built in": work.build()}, [""], {}
            for values in work.grid[-sizes.tiles :]:
                with forced(work.module, values, keys):
                    launches[str(values)] = work.build()
                tiles[str(values)] = list(values)
            key = next(key for key in keys if key.startswith(f"{work.kernel}/"))
            problems = dict.fromkeys(launches, "")
            if sizes.device == "cuda":
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    problems = dict(zip(launches, pool.map(_compiles, launches.values()), strict=True))
            device_of = next(x for x in launches["built in"].arguments if isinstance(x, torch.Tensor))
            rows, ways = {}, {}
            for name, launch in launches.items():
                rows[name] = Row(section, work.kernel, work.shape, work.dtype, name, OURS, note=problems[name])
                if not problems[name]:
                    ways[name] = lambda launch=launch: lambda: launch.run(device_of)  # type: ignore[misc]  # noqa: B023
            measured = list(interleave(rows, ways, sizes, seconds=2.0))
            best = min(
                (row for row in measured if row.milliseconds), key=lambda row: row.milliseconds or 0.0, default=None
            )
            if best is not None and best.direction in tiles:
                configs[key] = tiles[best.direction]
                best.verdict = "taken"
                path.write_text(json.dumps({"configs": configs}, indent=1))
            yield from measured
    finally:
        tuning._table.cache_clear()  # also where the time was over before the last kernel
