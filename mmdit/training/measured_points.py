"""Points of a learning curve: what a run has learned after some of its steps, and what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmdit.training.ema import exported_weights


@dataclass(frozen=True)
class TrainingCost:
    """What training took up to a point, evaluations left out, over all starts of the run.

    processor_seconds: of all threads of this process; wall_seconds: by the clock.
    """

    processor_seconds: float
    wall_seconds: float


Measure = Callable[[int, TrainingCost, Mapping[str, Tensor]], None]


class MeasuredPoints(Callback):
    """Calls ``measure(step, cost, weights)`` after given optimizer steps, with the weights that the run would export then.

    It comes before the callback that writes checkpoints, so a checkpoint of a point is written after the point is measured: a run
    that is killed meanwhile goes on from an earlier checkpoint and comes to the point again. The weights in training and their
    random numbers are left as they are; the costs so far are in the checkpoint.

    Args:
        steps: after which to measure.
        measure: what to do; it may be called again for a point that it has had.
    """

    def __init__(self, steps: Collection[int], measure: Measure) -> None:
        self.steps, self.measure = frozenset(steps), measure
        self._processor_seconds = self._wall_seconds = 0.0
        self._began: tuple[float, float] | None = None

    @property
    def cost(self) -> TrainingCost:
        """Up to now."""
        self._count()
        return TrainingCost(self._processor_seconds, self._wall_seconds)

    def _count(self) -> None:
        now = time.process_time(), time.perf_counter()
        if self._began is not None:
            self._processor_seconds += now[0] - self._began[0]
            self._wall_seconds += now[1] - self._began[1]
        self._began = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.process_time(), time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step not in self.steps:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        cost = self.cost
        with torch.random.fork_rng(), torch.no_grad():
            self.measure(trainer.global_step, cost, exported_weights(trainer, pl_module))
        self._began = time.process_time(), time.perf_counter()  # measuring doesn't count

    def state_dict(self) -> dict[str, float]:
        cost = self.cost
        return {"processor_seconds": cost.processor_seconds, "wall_seconds": cost.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._processor_seconds = float(state_dict["processor_seconds"])
        self._wall_seconds = float(state_dict["wall_seconds"])
