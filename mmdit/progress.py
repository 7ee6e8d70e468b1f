"""How far a command is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

FIRST_LINE, LONGEST_PAUSE = 10.0, 300.0  # seconds


class Progress:
    """Counts steps on stderr.

    On a terminal it is tqdm's bar. Elsewhere it writes whole lines, the first after 10 seconds, then at growing intervals
    of at most 5 minutes, and one at the end: "18:20:35 encode: 40% 400/1000 samples, 12.3 samples/s, 0:33 passed, 0:49
    left".

    Args:
        total: steps; None = not known.
        description: what is done.
        unit: a step's name, in the singular.
        enabled: whether to write at all.
        file: where to; None = stderr.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        unit: str = "step",
        *,
        enabled: bool = True,
        file: TextIO | None = None,
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.count = 0
        self._file = sys.stderr if file is None else file
        self._start = time.monotonic()
        self._pause = FIRST_LINE
        self._next = self._start + self._pause
        self._lines = enabled and not self._file.isatty()
        self._written = -1
        self._bar = None
        if enabled and not self._lines:
            self._bar = tqdm(total=total, desc=description, unit=unit, mininterval=0.5, file=self._file)

    def update(self, steps: int = 1) -> None:
        """Count steps that are done."""
        self.count += steps
        if self._bar is not None:
            self._bar.update(steps)
        elif self._lines and time.monotonic() >= self._next:
            self._write()
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._next = time.monotonic() + self._pause

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, one step each, and close at the end."""
        with self:
            for item in items:
                yield item
                self.update()

    def close(self) -> None:
        """Write the last line; more calls do nothing."""
        if self._bar is not None:
            self._bar.close()
        elif self._lines and self._written != self.count:
            self._write()
        self._bar, self._lines = None, False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = self.count / seconds
        speed = f"{rate:.3g} {self.unit}s/s" if rate >= 1 or not self.count else f"{1 / rate:.3g} s/{self.unit}"
        done = f"{self.count} {self.unit}s"
        left = ""
        if self.total is not None:
            share = 100 * self.count // max(self.total, 1)
            done = f"{share}% {self.count}/{self.total} {self.unit}s"
            left = f", {_duration((self.total - self.count) / rate)} left" if 0 < self.count < self.total else ""
        clock = time.strftime("%H:%M:%S")
        print(
            f"{clock} {self.description}: {done}, {speed}, {_duration(seconds)} passed{left}",
            file=self._file,
            flush=True,
        )
        self._written = self.count


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
