"""Rows of the first run: what is saved, how it is timed, and on what.

Implementations of one piece of work are interleaved, round after round, each time in another order: a clock that falls while
the GPU warms falls for all. A row has the median, the tenth and ninetieth percentile, and the clock after its rounds.
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from first_run_table import OURS as OURS
from harness import peak_mib

PAUSE_CYCLES = 2_000_000  # a millisecond, in which Python queues the call: what is timed is the device


class Sizes(NamedTuple):
    """What is run: the XL/2 model's sizes on a GPU, toys in the rehearsal."""

    device: str
    compiler: str  # backend of torch.compile
    heads: int
    tokens: int  # in all samples of a timing of attention
    lengths: tuple[int, ...]
    head_dims: tuple[int, ...]
    width: int
    adaln: tuple[int, int]  # batch, tokens
    depth: int
    block_batch: int
    step_batch: int
    warmups: int
    repeats: int
    tiles: int  # that are tried beside those built in


GPU = Sizes("cuda", "inductor", 16, 32768, (256, 1024, 4096), (64, 72), 1152, (128, 256), 28, 128, 64, 3, 25, 9)
REHEARSAL = Sizes("cpu", "eager", 1, 8, (8,), (24,), 24, (1, 4), 2, 1, 1, 1, 1, 1)


@dataclass
class Row:
    """One result: of a check (``error`` against ``bound``), or of a timing."""

    section: str
    op: str
    shape: str
    dtype: str
    direction: str
    implementation: str
    verdict: str = ""
    error: float | None = None
    theirs: float | None = None  # PyTorch's error in the same dtype
    bound: float | None = None
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int | None = None
    tflop_s: float | None = None
    gb_s: float | None = None
    peak_mib: float | None = None
    clocks: str = ""
    note: str = ""


@dataclass
class Report:
    """All rows and what became of each section, saved whenever one is added: ``first_run.csv`` and ``first_run.json``."""

    folder: Path
    environment: dict[str, str]
    started: float
    minutes: float
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def left(self) -> float:
        """Return the seconds that are left of the whole run."""
        return self.started + 60 * self.minutes - time.time()

    def add(self, row: Row) -> None:
        self.rows.append(row)
        shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in asdict(row).values() if value)
        print("  ".join(shown), flush=True)
        self.save()

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) for row in self.rows]
        temporary = self.folder / "first_run.tmp"  # a run that is killed while it writes leaves the files before
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [column.name for column in fields(Row)])
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.folder / "first_run.csv")
        state = {name: value for name, value in vars(self).items() if name not in ("folder", "rows")}
        temporary.write_text(json.dumps({**state, "rows": rows}, indent=1))
        temporary.replace(self.folder / "first_run.json")

    @classmethod
    def load(cls, folder: Path) -> Report:
        """Read what a process before this one has saved."""
        state = json.loads((folder / "first_run.json").read_text())
        return cls(folder, **{**state, "rows": [Row(**row) for row in state["rows"]]})


def short(error: BaseException) -> str:
    """Return an exception as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def clocks() -> str:
    """Return the clocks of the multiprocessors and the memory, temperature and power, or nothing."""
    query = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={torch.cuda.current_device()}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class _Timer:
    """Times single calls: by device events, with a cleared cache, on a GPU; else by the clock on the wall."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.cache = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda") if self.cuda else None

    def __call__(self, function: Callable[[], object], pauses: int) -> float:
        if self.cache is None:
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cache.zero_()
        torch.cuda._sleep(pauses * PAUSE_CYCLES)
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


def interleave(
    rows: dict[str, Row], ways: dict[str, Callable[[], Callable[[], object]]], sizes: Sizes, pauses: int = 1,
    seconds: float = 4.0,
) -> Iterator[Row]:  # fmt: skip
    """Time what each way builds, and yield the rows filled in; a way that cannot run leaves a row that says why.

    ``pauses``: milliseconds that Python may take to queue a call; ``seconds``: what the rounds may take at the most.
    """
    timer = _Timer(sizes.device)
    functions: dict[str, Callable[[], object]] = {}
    for name, build in ways.items():
        try:
            function = build()
            for _ in range(sizes.warmups):  # the first one compiles
                function()
            if timer.cuda:
                rows[name].peak_mib = peak_mib(function)
            functions[name] = function
        except Exception as error:  # a rival that does not take the shape is a result too
            rows[name].note = short(error)
            if timer.cuda:
                torch.cuda.synchronize()  # raises where the error has left the GPU unusable
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    end = time.monotonic() + seconds
    for turn in range(sizes.repeats):
        if turn >= 5 and time.monotonic() > end:
            break
        for index in range(len(names)):
            name = names[(turn + index) % len(names)]
            times[name].append(timer(functions[name], pauses))
    state = clocks() if timer.cuda else ""
    for name, row in rows.items():
        if times.get(name):
            found = sorted(times[name])
            row.milliseconds, row.rounds, row.clocks = statistics.median(found), len(found), state
            row.low, row.high = found[len(found) // 10], found[-1 - len(found) // 10]
        yield row


def with_work(row: Row, flops: float = 0.0, moved: float = 0.0) -> Row:
    """Fill in the rate."""
    if row.milliseconds:
        row.tflop_s = flops / row.milliseconds / 1e9 if flops else None
        row.gb_s = moved / row.milliseconds / 1e6 if moved else None
    return row
