"""One thread that runs the model for all visitors, with previews while it samples."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.pipelines.previews import decode_latents, estimated_clean

_ENDS = "the server was ended: nothing more is made"


@dataclass(frozen=True)
class Preview:
    """Where a call is after a step, counted from 1, and what its first sample will look like: modality -> raw array."""

    step: int
    num_steps: int
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Finished:
    """What a call returned, the steps it took, its time in seconds, and the guidance and internal guidance that it had."""

    output: Any
    num_steps: int
    seconds: float
    guidance: tuple[float, float]


class Sampler:
    """Runs calls of one pipeline one after the other.

    Args:
        pipe: the pipeline.
        interval: least time in seconds between two previews, which cost a decoding each.
    """

    def __init__(self, pipe: MultimodalDiTPipeline, interval: float = 0.5) -> None:
        self.pipe, self.interval = pipe, interval
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._watches: set[_Watch] = set()
        self._lock = threading.Lock()
        self._closed = False

    def run(self, **arguments: Any) -> Iterator[Preview | Finished]:
        """Call the pipeline: previews as they come, then the result. Ends the call early where the iterator is closed.

        Raises:
            UserError: the server ends.
            Exception: whatever the call raises.
        """
        events: queue.SimpleQueue[Preview | Finished | Exception] = queue.SimpleQueue()
        watch = _Watch(self, events.put)

        def call() -> None:
            if watch.stopped.is_set():
                return
            begun = time.perf_counter()
            try:
                output = self.pipe(**arguments, callback_on_step_end=watch)
                guidance = self.pipe.guidance_scale, self.pipe.internal_guidance_scale
                events.put(Finished(output, watch.num_steps, time.perf_counter() - begun, guidance))
            except Exception as error:  # it is the visitor's thread that tells
                events.put(error)

        with self._lock:
            if self._closed:
                raise UserError(_ENDS)
            self._watches.add(watch)
            self._thread.submit(call)
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            watch.stopped.set()
            with self._lock:
                self._watches.discard(watch)

    def close(self) -> None:
        """End the call that runs at its next step, those that wait at once, and the thread. May be called again."""
        with self._lock:
            self._closed = True
            for watch in self._watches:
                watch.stopped.set()
                watch.tell(UserError(_ENDS))
            self._thread.shutdown(wait=False, cancel_futures=True)


class _Watch:
    """The callback of one call."""

    def __init__(self, sampler: Sampler, tell: Callable[[Preview | Exception], None]) -> None:
        self.sampler, self.tell = sampler, tell
        self.stopped = threading.Event()
        self.num_steps = 0
        self._before: Tensor | None = None
        self._last = time.monotonic()

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if self.stopped.is_set():
            pipeline._interrupt = True
        self.num_steps = pipeline.num_timesteps
        latents = tensors["latents"][:1]
        before, self._before = self._before, latents
        now = time.monotonic()
        is_last = step + 1 == self.num_steps
        if before is None or is_last or self.stopped.is_set() or now - self._last < self.sampler.interval:
            return {}
        here, there = (float(sigma) for sigma in pipeline.scheduler.sigmas[step : step + 2])
        if here == there:
            return {}
        arrays = decode_latents(pipeline, estimated_clean(before, latents, here, there))
        self.tell(Preview(step + 1, self.num_steps, {name: array[0] for name, array in arrays.items()}))
        self._last = time.monotonic()
        return {}
