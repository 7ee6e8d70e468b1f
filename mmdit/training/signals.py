"""The signals that end a run. Imports nothing heavy: it counts from the first second on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SLURM: TERM before a pre-empted or cancelled job is killed, USR1 where `--signal=USR1@90` asks for a warning.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


@contextmanager
def leaving_quietly() -> Iterator[None]:
    """Leave with exit code 0 at a cluster's signal while nothing is trained: before the first step, or at the export.

    There is nothing to save then, and a requeued job does it again. Ctrl-C keeps its own way out.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        print(f"stopped by {signal.Signals(number).name} between steps: go on with --resume auto", file=sys.stderr)
        raise SystemExit(0)

    numbers = set(STOP_SIGNALS) - {signal.SIGINT} if threading.current_thread() is threading.main_thread() else set()
    found = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
