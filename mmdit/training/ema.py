"""Exponential moving average on top of Lightning's weight averaging, which swaps it in for validation and checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def ema_decay(num_averaged: int, decay: float) -> float:
    """min(decay, (1 + n) / (10 + n)): the average forgets its random start (TensorFlow's ExponentialMovingAverage)."""
    return min(decay, (1 + num_averaged) / (10 + num_averaged))


class EMA(WeightAveraging):
    """Average of the weights with a decay that warms up.

    Args:
        decay: final decay, 0 … 1.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        @torch.no_grad()
        def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
            torch._foreach_lerp_(averaged, current, 1 - ema_decay(int(num_averaged), decay))

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._latest_update_step}
