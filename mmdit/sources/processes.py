"""A function over many items in worker processes, and what this machine has for them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 8  # items per worker that are under way or done before their turn
MAX_WORKERS = 1024


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_memory() -> int | None:
    """Bytes of memory of this machine; None = the system doesn't say."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def map_in_processes(
    function: Callable[[T], R], items: Iterable[T], workers: int, start: Callable[[], None] | None = None
) -> Iterator[R]:
    """Yield the results in the order of ``items``; with ``workers`` <= 1 from this process.

    Items are taken as they are needed, so there may be any number. ``start`` runs first in each worker. Function and items
    are pickled.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # spawn: Mitsuba's threads do not survive a fork.
    executor = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(start,)
    )
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            while len(waiting) >= AHEAD * workers or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(start: Callable[[], None] | None) -> None:
    if start is not None:
        start()

    # A worker whose parent was killed would wait for work for ever.
    def leave_with_parent() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
