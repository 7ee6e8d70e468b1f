"""What the benchmarks share: timing, the limits of the machine, tables, files.

Every time is the median over repetitions of one call, by device events, with the L2 cache cleared before each. A pause of
the device goes before the first event, so that the call is queued when its turn comes: what is timed is the device, not
Python. Limits (a large copy, a large matrix product) are measured in the same run, and every share is of those, not of a
data sheet.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from first_run_table import OURS as OURS

RESULTS = Path(__file__).parent / "results"
PAUSE_CYCLES = 10_000_000  # about five milliseconds: longer than Python takes to launch one operator and its gradient


def require_gpu() -> None:
    """Exit with code 2 and one line without a GPU or without triton."""
    if not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA or ROCm GPU, and torch sees none", file=sys.stderr)
        raise SystemExit(2)
    require_triton()


def require_triton() -> None:
    """Exit with code 2 and one line without triton."""
    from mmdit_kernels.dispatch import triton_version

    if triton_version() is None:
        print("error: this benchmark needs triton, which is not installed", file=sys.stderr)
        raise SystemExit(2)


def parser(description: str | None) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    result.add_argument("--output", type=Path, default=RESULTS, help="folder for the CSV and PNG files")
    result.add_argument("--repeats", type=int, default=30, help="timed repetitions of each measurement")
    result.add_argument("--quick", action="store_true", help="the smallest size of each only")
    return result


@dataclass
class Row:
    """One measurement. ``work`` is TFLOP/s or GB/s after ``unit``; ``share`` is work over the limit of this run."""

    op: str
    shape: str
    dtype: str
    direction: str
    implementation: str
    milliseconds: float | None = None
    unit: str = ""
    work: float | None = None
    share: float | None = None
    peak_mib: float | None = None
    speedup: float | None = None  # time of the best other implementation over this time
    goal: str = ""
    note: str = ""


class Goal(NamedTuple):
    """What rows of ours with this op, and a shape that starts so, are to reach in forward and backward together.

    ``ratio`` is the time of the best implementation that starts with ``against`` over ours; ``share`` is of the limit.
    """

    op: str
    shape: str
    against: str
    ratio: float
    share: float = 0.0


@functools.cache
def _cache_cleaner() -> torch.Tensor:
    return torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call on the device."""
    for _ in range(5):
        function()
    cleaner = _cache_cleaner()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        cleaner.zero_()
        torch.cuda._sleep(PAUSE_CYCLES)
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def peak_mib(function: Callable[[], object]) -> float:
    """Return the memory that a call allocates at its peak, over what was there before, in MiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(row: Row, build: Callable[[], Callable[[], object]], repeats: int) -> Row:
    """Time what ``build`` returns; an implementation that cannot run leaves a row that says why."""
    try:
        function = build()
        function()
        row.peak_mib = peak_mib(function)
        row.milliseconds = milliseconds(function, repeats)
    except Exception as error:  # a baseline that does not take the shape is a result too
        row.note = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return row


@functools.cache
def copy_limit() -> float:
    """Return GB/s of a large copy, bytes read and written."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source), 20) / 1e6


@functools.cache
def product_limit(dtype: torch.dtype) -> float:
    """Return TFLOP/s of a large matrix product."""
    a, b = (torch.randn(8192, 8192, dtype=dtype, device="cuda") for _ in range(2))
    return 2 * 8192**3 / milliseconds(lambda: a @ b, 20) / 1e9


def add_work(row: Row, flops: float = 0.0, bytes_moved: float = 0.0) -> Row:
    """Fill in rate and share, of the product limit where ``flops`` are given and of the copy limit otherwise."""
    if row.milliseconds is not None:
        row.unit = "TFLOP/s" if flops else "GB/s"
        row.work = flops / row.milliseconds / 1e9 if flops else bytes_moved / row.milliseconds / 1e6
        row.share = row.work / (product_limit(getattr(torch, row.dtype)) if flops else copy_limit())
    return row


def best_time(rows: list[Row], like: Row, prefix: str = "") -> float | None:
    """Return the least time of implementations other than ours, whose names start so, on the same work as ``like``."""
    key = (like.op, like.shape, like.dtype, like.direction)
    times = [
        row.milliseconds
        for row in rows
        if (row.op, row.shape, row.dtype, row.direction) == key
        and row.implementation.startswith(prefix)
        and not row.implementation.startswith(OURS)
        and row.milliseconds is not None
    ]
    return min(times, default=None)


def compare(rows: list[Row], goals: tuple[Goal, ...]) -> None:
    """Fill in the speedup of our rows over the best other implementation, and whether they meet the goal."""
    for row in rows:
        if not row.implementation.startswith(OURS) or row.milliseconds is None:
            continue
        best = best_time(rows, row)
        row.speedup = None if best is None else best / row.milliseconds
        for goal in goals:
            if row.op != goal.op or not row.shape.startswith(goal.shape) or row.direction != "forward+backward":
                continue
            other = best_time(rows, row, goal.against)
            ratio = 0.0 if other is None else other / row.milliseconds
            met = ratio >= goal.ratio and (row.share or 0.0) >= goal.share
            row.goal = f"{ratio:.2f}x {goal.against}, goal {goal.ratio:.2f}x"
            row.goal += f" and share {goal.share:.2f}" if goal.share else ""
            row.goal += ": met" if met else ": not met"


@functools.cache
def environment() -> dict[str, str]:
    """Return GPU, driver and versions."""
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [*(field.name for field in fields(Row)), "copy_limit_gb_s", "product_limit_tflop_s", *environment()]
        )
        limits = f"{copy_limit():.0f}", f"{product_limit(torch.bfloat16):.0f}"
        for row in rows:
            writer.writerow([*map(_text, asdict(row).values()), *limits, *environment().values()])


def report(name: str, measured: Iterable[Row], goals: tuple[Goal, ...], folder: Path) -> None:
    """Print and save each row as it is measured, then the table with its comparisons, as ``name.csv`` and ``name.png``."""
    print(", ".join(f"{key} {value}" for key, value in environment().items()))
    product = product_limit(torch.bfloat16)
    print(f"limits of this run: copy {copy_limit():.0f} GB/s, bfloat16 product {product:.0f} TFLOP/s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for row in measured:
        rows.append(row)
        print("  ".join(filter(None, map(_text, asdict(row).values()))), flush=True)
        _write(rows, folder / f"{name}.csv")  # a run that is cut short leaves what it has
    compare(rows, goals)
    _write(rows, folder / f"{name}.csv")
    columns = [field.name for field in fields(Row)]
    table = [columns, *([_text(value) for value in asdict(row).values()] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    _plot(name, [row for row in rows if row.milliseconds is not None], folder)
    print(f"saved {folder / name}.csv and .png", flush=True)


def _plot(name: str, rows: list[Row], folder: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not rows:
        return
    groups = list(dict.fromkeys((row.op, row.shape, row.direction) for row in rows))
    implementations = list(dict.fromkeys(row.implementation for row in rows))
    width = 0.8 / len(implementations)
    figure, axis = plt.subplots(figsize=(max(8.0, 1.1 * len(groups)), 5))
    for index, name_ in enumerate(implementations):
        times = {(row.op, row.shape, row.direction): row.milliseconds for row in rows if row.implementation == name_}
        places = [position + width * index for position, key in enumerate(groups) if key in times]
        axis.bar(places, [times[key] for key in groups if key in times], width, label=name_)
    axis.set_yscale("log")
    axis.set_ylabel("milliseconds")
    axis.set_xticks(range(len(groups)), ["\n".join(key) for key in groups], fontsize=6, rotation=60, ha="right")
    axis.set_title(", ".join(environment().values()), fontsize=8)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=120)
    plt.close(figure)
