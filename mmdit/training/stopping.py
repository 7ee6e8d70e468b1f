"""Stopping a run so that it can go on: signals and the time limit end it after an optimizer step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from mmdit.training.signals import caught_signals, leave_terminal


class StopGracefully(Callback):
    """Ends the run after the optimizer step during which a signal came, or the time limit was passed, on any process.

    The checkpoint callback, which runs after this one, writes the state. Lightning's own handlers are replaced: they skip
    the checkpoint, and talk to the other processes from inside a signal handler, where another exchange may be under way.
    As a context manager it also catches signals before the first step, and puts back the handlers that it found. Repeated
    signals change nothing, because a cluster and torchrun may both send one while the checkpoint is written; a second
    Ctrl-C is left to the handler that was there before.

    Args:
        max_hours: stop after this time in this process; None = no limit.

    Attributes:
        time_share: share of ``max_hours`` that has passed after the last optimizer step, the same in all processes; 0 if there
            is no limit.
    """

    def __init__(self, max_hours: float | None = None) -> None:
        self.max_hours = max_hours
        self.time_share = 0.0
        self.received: int | None = None  # number of the signal that came to this process
        self.stopped_by: int | None = None  # number of the signal that ended the run, whichever process got it
        self._begin = float("inf")
        self._found: dict[int, Any] = {}
        self._group: Any = None

    def __enter__(self) -> StopGracefully:
        if threading.current_thread() is threading.main_thread():
            self._found = {number: signal.getsignal(number) for number in caught_signals()}
            self._install()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._found.items():
            signal.signal(number, handler)
        self._found = {}

    def _install(self) -> None:
        for number in self._found:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        again, self.received = self.received == number, number
        if again and number == signal.SIGINT:
            signal.signal(number, self._found.get(number, signal.default_int_handler))
            signal.raise_signal(number)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install()
        self._begin = time.monotonic()
        if trainer.world_size > 1:
            # Between CPUs: asking the GPUs would wait for them in every step.
            self._group = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else dist.group.WORLD

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the gradients of half an accumulation are in no checkpoint
        passed = time.monotonic() - self._begin
        share = 0.0 if self.max_hours is None else passed / (self.max_hours * 3600)
        state = torch.tensor([self.received or 0, share], dtype=torch.float64)
        if self._group is not None:
            dist.all_reduce(state, dist.ReduceOp.MAX, group=self._group)
        # A signal that comes while this process waits for the others is not in the sum; the next step sees it.
        self.stopped_by = int(state[0]) or None
        if self.stopped_by is not None:
            trainer.limit_val_batches = 0  # whoever sent the signal won't wait for a validation
        self.time_share = float(state[1])
        if self.stopped_by is not None or self.time_share > 1:
            trainer.should_stop = True
