"""Progress and throughput of a run."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from mmdit.progress import Progress
from mmdit.training.module import SteppedModule


def _time_passed(module: pl.LightningModule) -> str | None:
    """How much of the run's time has passed, as "43%"; None = steps end it, and what is left is told from them."""
    share = module.time_share if isinstance(module, SteppedModule) else None
    return None if share is None else f"{min(1.0, share):.0%}"


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
        self._reset()  # validation doesn't count as training time

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


class StepProgressBar(TQDMProgressBar):
    """One bar over the optimizer steps of the whole run, which starts where a resumed run does."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.reset(total=trainer.max_steps)
        if _time_passed(pl_module) is not None:
            bar.total = None
        bar.initial = bar.n = trainer.global_step
        bar.set_description("Training")

    def on_exception(self, *_: Any) -> None:
        """Close the bar, so that the message starts a new line."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Lightning's epochs mean nothing here, and a resumed run may begin in the middle of one."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._should_update(step, trainer.max_steps) and step > self.train_progress_bar.n:
            self.train_progress_bar.update(step - self.train_progress_bar.n)
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if (passed := _time_passed(pl_module)) is not None:
            metrics["time"] = passed
        return metrics  # type: ignore[return-value]


class ProgressLines(Callback):
    """Print what the bar shows as a line now and then, in logs without a terminal.

    "18:20:35 training, step 40 of 1000, loss 0.81, img/s 102: 4% 40/1000 steps, 3.2 steps/s, 0:12 passed, 5:00 left"; the
    counts behind the colon are of this process, which may have resumed a run.

    Args:
        every: steps between which a line may be due: the values are those of the last log entry.
    """

    def __init__(self, every: int = 10) -> None:
        self.every, self._seen = every, 0
        self._progress: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = trainer.global_step
        if trainer.is_global_zero:
            # Where time ends the run, the steps to max_steps say nothing of what is left.
            total = trainer.max_steps - self._seen if _time_passed(pl_module) is None else None
            self._progress = Progress(total, "training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        is_due = step % self.every == 0 or step >= trainer.max_steps or trainer.should_stop
        if self._progress is None or step == self._seen or not is_due:
            return
        values = {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
        shown = [f"{name} {float(value):.4g}" for name, value in values.items()]
        if (passed := _time_passed(pl_module)) is not None:
            shown.append(f"{passed} of the time")
        self._progress.description = ", ".join(["training", f"step {step} of {trainer.max_steps}", *shown])
        self._progress.update(step - self._seen)
        self._seen = step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._progress is not None:
            self._progress.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
