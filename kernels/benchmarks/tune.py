"""Offline tuner: measures tile sizes on this GPU and writes them where the kernels look for them.

Only this command tunes. A program reads the file once, on its first launch; with no file it takes the built-in table.
Entries are saved one by one, beside those that the file has already, so that a long tuning may be done in parts.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from harness import environment, milliseconds, parser, require_gpu
from mmdit_kernels.adaln import configs as adaln_configs
from mmdit_kernels.adaln import launches as adaln
from mmdit_kernels.attention import configs as attention_configs
from mmdit_kernels.attention import launches as attention
from mmdit_kernels.launch import Launch
from mmdit_kernels.tuning import bucket, tuned_path

HEADS, TOKENS, WIDTH = 16, 32768, 1152
# Rows of queries, rows of keys, warps, stages; and what fits twice into a multiprocessor only with fewer registers.
TWICE = list(itertools.product((128,), (32, 64, 128), (8,), (2, 3), (128,)))
ATTENTION_GRID: dict[str, list[tuple[int, ...]]] = {
    "forward": [*itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)), *TWICE],
    "backward_q": [*itertools.product((64, 128), (32, 64, 128), (4, 8), (1, 2, 3)), *TWICE],
    "backward_kv": [*itertools.product((32, 64, 128), (64, 128), (4, 8), (1, 2, 3))],
}
ADALN_GRID = {
    "forward": list(itertools.product((1, 2, 4), (8,), (1, 2, 4, 8), (1,))),
    "backward": list(itertools.product((1, 2, 4), (8, 16, 32, 64), (2, 4, 8), (1, 2, 3, 4))),
}


@contextlib.contextmanager
def forced(module: Any, values: tuple[int, ...]) -> Any:
    """Let ``module.tuned`` answer with these tiles whatever is asked."""
    original = module.tuned
    module.tuned = lambda key, device=None: list(values)
    try:
        yield
    finally:
        module.tuned = original


def compiles(launch: Launch) -> bool:
    """Compile a launch into triton's cache."""
    try:
        launch.kernel.warmup(*launch.arguments, grid=(launch.programs,), **launch.constants)
    except Exception:  # these tiles do not fit this GPU
        return False
    return True


def best(
    module: Any, grid: list[tuple[int, ...]], build: Callable[[], Launch], device_of: torch.Tensor, repeats: int
) -> tuple[list[int] | None, float]:
    """Return the fastest tiles that compile and fit, and their time; all are compiled first, as many as there are cores."""
    launches = []
    for values in grid:
        with forced(module, values):
            launches.append(build())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        usable = list(pool.map(compiles, launches))
    winner, time = None, math.inf
    for values, launch, works in zip(grid, launches, usable, strict=True):
        if not works:
            continue
        try:
            elapsed = milliseconds(lambda: launch.run(device_of), repeats)  # noqa: B023
        except Exception:  # too much shared memory
            continue
        if elapsed < time:
            winner, time = list(values), elapsed
    return winner, time


def attention_inputs(n: int, d: int, dtype: torch.dtype, transforms: bool) -> attention.Inputs:
    qkv = torch.randn(TOKENS // n, n, 3, HEADS, d, dtype=dtype, device="cuda").permute(2, 0, 3, 1, 4)
    weight = torch.ones(d, device="cuda") if transforms else None
    table = torch.rand(n, d, device="cuda") if transforms else None
    return attention.Inputs(*qkv, weight, weight, table, table, None, d**-0.5)


def tune_attention(configs: dict[str, list[int]], options: argparse.Namespace, save: Callable[[], None]) -> None:
    for d, n, transforms in itertools.product(options.head_dims, options.lengths, (False, True)):
        inputs = attention_inputs(n, d, torch.bfloat16, transforms)
        launch, out, stats = attention.forward_launch(inputs)
        launch.run(inputs.q)
        d_out = torch.randn_like(out)
        builders = {
            "forward": lambda: attention.forward_launch(inputs)[0],  # noqa: B023
            "backward_q": lambda: attention.backward_launches(inputs, d_out, out, stats)[0],  # noqa: B023
            "backward_kv": lambda: attention.backward_launches(inputs, d_out, out, stats)[1],  # noqa: B023
        }
        for kernel, build in builders.items():
            values, time = best(attention_configs, ATTENTION_GRID[kernel], build, inputs.q, options.repeats)
            if values is not None:
                key = f"attention_{kernel}/bfloat16/d{d}/n{bucket(n)}/s{bucket(n)}/t{int(transforms)}"
                configs[key] = values
                save()
                print(f"{key}: {values}, {time:.3f} ms", flush=True)


def tune_adaln(configs: dict[str, list[int]], options: argparse.Namespace, save: Callable[[], None]) -> None:
    half = torch.bfloat16
    for width, tokens, stream in itertools.product(options.widths, (8192, 32768), (half, torch.float32)):
        b = tokens // 256
        x = torch.randn(b, 256, width, dtype=stream, device="cuda")
        y = torch.randn(b, 256, width, dtype=half, device="cuda")
        gate, shift, scale = torch.randn(b, 3 * width, dtype=half, device="cuda").chunk(3, dim=1)
        dtypes = (stream, half)
        launch, h, _, stats = adaln.forward_launch(x, y, gate, shift, scale, 1e-6, *dtypes)
        launch.run(x)
        builders = {
            "forward": lambda: adaln.forward_launch(x, y, gate, shift, scale, 1e-6, *dtypes)[0],  # noqa: B023
            "backward": lambda: adaln.backward_launch(h, y, x, y, gate, scale, stats, x.dtype)[0],  # noqa: B023
        }
        for kernel, build in builders.items():
            values, time = best(adaln_configs, ADALN_GRID[kernel], build, x, options.repeats)
            if values is not None:
                key = adaln_configs.key(kernel, stream, half, width, tokens)
                configs[key] = values
                save()
                print(f"{key}: {values}, {time:.3f} ms", flush=True)


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--head_dims", type=int, nargs="+", default=[64, 72, 128])
    options.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096])
    options.add_argument("--only", nargs="+", choices=["attention", "adaln"], default=["attention", "adaln"])
    options.add_argument("--widths", type=int, nargs="+", default=[768, 1152])
    chosen = options.parse_args(arguments)
    require_gpu()
    path = tuned_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    configs: dict[str, list[int]] = json.loads(path.read_text())["configs"] if path.is_file() else {}

    def save() -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"environment": environment(), "configs": configs}, indent=1))
        temporary.replace(path)

    if "attention" in chosen.only:
        tune_attention(configs, chosen, save)
    if "adaln" in chosen.only:
        tune_adaln(configs, chosen, save)
    print(f"{len(configs)} entries in {path}")


if __name__ == "__main__":
    main()
