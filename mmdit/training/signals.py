"""The signals that end a run. Imports nothing heavy: it counts from the first second on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SLURM: TERM before a pre-empted or cancelled job is killed, USR1 where `--signal=USR1@90` asks for a warning.
# HUP: the terminal was closed, or the connection to it was lost.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
)


def caught_signals() -> tuple[signal.Signals, ...]:
    """Return ``STOP_SIGNALS``, without SIGHUP where it is ignored, as nohup asks."""
    hangup = getattr(signal, "SIGHUP", None)
    ignored = hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (ignored and number == hangup))


def leave_terminal(number: int) -> None:
    """At SIGHUP, write to nowhere from now on: a write to the closed terminal would fail, and the checkpoint with it."""
    if number != getattr(signal, "SIGHUP", None):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        try:
            is_file = os.fstat(descriptor).st_mode & 0o170000 == 0o100000
        except OSError:
            continue
        if not is_file:  # a log is kept; a terminal that was closed no longer says that it is one
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def leaving_quietly() -> Iterator[None]:
    """Leave with exit code 0 at a cluster's signal while nothing is trained: before the first step, or at the export.

    Nothing needs saving then, and a requeued job does it again. Ctrl-C works as usual.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        print(f"stopped by {signal.Signals(number).name} between steps: go on with --resume auto", file=sys.stderr)
        raise SystemExit(0)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = set(caught_signals()) - {signal.SIGINT} if is_main else set()
    found = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
