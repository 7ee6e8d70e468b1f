"""Progress, throughput and time limit of a run."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs images per second and the share of the time spent waiting for data, to the progress bar and the logger.

    Args:
        global_batch_size: samples per batch over all processes.
        every: batches between entries.
    """

    def __init__(self, global_batch_size: int, every: int = 10) -> None:
        self.global_batch_size, self.every = global_batch_size, every
        self._reset()

    def _reset(self) -> None:
        self._began, self._ended, self._waited, self._batches = time.perf_counter(), time.perf_counter(), 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reset()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reset()  # validation is no training time

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if self._batches % self.every == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = max(time.perf_counter() - self._began, 1e-9)
            rate = self._batches * self.global_batch_size / seconds
            pl_module.log("img/s", rate, prog_bar=True, logger=False)
            pl_module.log_dict({"speed/images_per_second": rate, "speed/data_wait_share": self._waited / seconds})
            self._reset()
        self._ended = time.perf_counter()


class TimeLimit(Callback):
    """Stops the run with a checkpoint once this process has trained for ``hours``."""

    def __init__(self, hours: float) -> None:
        self.hours = hours

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._deadline = time.monotonic() + self.hours * 3600

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() > self._deadline:
            trainer.should_stop = True
