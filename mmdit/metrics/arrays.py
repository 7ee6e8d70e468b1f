"""Inputs of the metrics as checked float64 or integer batches, and a streaming mean."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


def to_array(values: Any) -> Array:
    """Return a numpy array of an array, a tensor on any device, or nested numbers."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def map_batch(values: Any, what: str, channels: int | None = None) -> Array:
    """Return (N, H, W[, channels]); one map (H, W[, channels]) becomes a batch of one.

    Raises:
        ValueError: another number of dimensions or channels, or an empty map.
    """
    array = to_array(values)
    tail = () if channels is None else (channels,)
    if array.ndim == 2 + len(tail):
        array = array[None]
    if array.ndim != 3 + len(tail) or array.shape[3:] != tail or 0 in array.shape[1:]:
        wanted = ", ".join(["height", "width", *map(str, tail)])
        raise ValueError(f"{what} has shape {to_array(values).shape}: give ({wanted}) or (batch, {wanted})")
    return array


def check_same_shape(prediction: Array, target: Array, what: str) -> None:
    """Raise ValueError unless both have the same shape: nothing is resized or broadcast in a metric."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"{what}: the prediction has shape {prediction.shape}, the target {target.shape}: make them equal"
        )


def mask_batch(mask: Any, shape: tuple[int, ...], what: str) -> Array:
    """Return a bool mask (N, H, W) of the given shape. Raises ValueError for another shape."""
    array = map_batch(mask, what).astype(bool)
    if array.shape != shape:
        raise ValueError(f"{what} has shape {array.shape}: the maps have {shape}")
    return array


class RunningMean:
    """Mean of all values seen, accumulated in float64; NaN before the first and after any NaN."""

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def update(self, values: Any) -> None:
        array = np.asarray(values, dtype=np.float64)
        self.total += float(array.sum())
        self.count += array.size

    def compute(self) -> float:
        return self.total / self.count if self.count else float("nan")


class MeanWithError:
    """Mean of independent values and its standard error: their deviation over the root of their number."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def add(self, value: float) -> None:
        self.values.append(float(value))

    @property
    def mean(self) -> float:
        """NaN where there is no value."""
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def error(self) -> float:
        """NaN with fewer than two values."""
        return float(np.std(self.values, ddof=1) / np.sqrt(len(self.values))) if len(self.values) > 1 else float("nan")
