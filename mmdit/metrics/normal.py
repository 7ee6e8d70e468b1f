"""Angles between predicted and true surface normals, in degrees, over pixels (Bae et al., arXiv 2109.09881)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmdit.metrics.arrays import Array, RunningMean, check_same_shape, map_batch, mask_batch

CLOSE_DEGREES = 11.25
BINS_PER_DEGREE = 100


def angle_degrees(first: Array, second: Array) -> Array:
    """Angle between vectors (..., 3) of any length, in degrees (...): 2 atan2(|a - b|, |a + b|) of the unit vectors.

    Accurate near 0 and 180, where the arc cosine is not. A zero vector has no direction: NaN.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        a = first / np.linalg.norm(first, axis=-1, keepdims=True)
        b = second / np.linalg.norm(second, axis=-1, keepdims=True)
        return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def valid_normal(target: Array) -> Array:
    """True where a normal map holds a vector: finite and not (0, 0, 0), the mark of an invalid pixel."""
    return np.isfinite(target).all(axis=-1) & (np.linalg.norm(target, axis=-1) > 0.1)


class AngleHistogram:
    """Angles from 0 to 180 degrees, streamed into bins: the median is as fine as they are."""

    def __init__(self, bins_per_degree: int) -> None:
        self.bins_per_degree = bins_per_degree
        self.counts = np.zeros(180 * bins_per_degree, dtype=np.int64)

    def add(self, angles: Array) -> None:
        """Add angles in degrees, of any shape; NaN is left out."""
        bins = (angles[~np.isnan(angles)] * self.bins_per_degree).astype(np.int64)
        self.counts += np.bincount(np.minimum(bins, len(self.counts) - 1), minlength=len(self.counts))

    @property
    def count(self) -> int:
        """How many angles there are."""
        return int(self.counts.sum())

    def middle(self) -> tuple[float, float]:
        """The two angles in the middle, in degrees; the same one twice where their number is odd. Needs an angle."""
        places = [(self.count - 1) // 2, self.count // 2]
        low, high = (np.searchsorted(self.counts.cumsum(), places, side="right") + 0.5) / self.bins_per_degree
        return float(low), float(high)


class NormalMetrics:
    """Streaming errors of normals, each valid pixel of the dataset with the same weight.

    Pixels whose true normal is invalid are left out and counted. A predicted vector with no direction (zero, NaN) at a
    valid pixel makes the means NaN: it is never dropped.
    """

    columns: ClassVar[tuple[str, ...]] = ("mean_angle", "within_11_25", "mean_angle_objects")
    higher_is_better: ClassVar[frozenset[str]] = frozenset({"within_11_25"})

    def __init__(self) -> None:
        self.mean_angle = RunningMean()
        self.mean_angle_objects = RunningMean()
        self.within = RunningMean()
        self.histogram = AngleHistogram(BINS_PER_DEGREE)
        self.invalid_pixels = 0
        self.num_images = 0

    @classmethod
    def for_codec(cls, codec: Any, depth_range: tuple[float, float]) -> NormalMetrics:
        return cls()

    def add(self, prediction: Any, truth: Any, *, objects: Any = None, category: str | None = None) -> None:
        """Add one image, as ``update`` does."""
        self.update(prediction, truth, objects)

    def update(self, prediction: Any, target: Any, objects: Any | None = None) -> None:
        """Add images.

        Args:
            prediction: (H, W, 3) or (N, H, W, 3), vectors in the camera frame, of any length.
            target: the same shape and frame; (0, 0, 0) or NaN marks an invalid pixel.
            objects: (H, W) or (N, H, W), True on objects, for ``mean_angle_objects``; None = unknown.

        Raises:
            ValueError: shapes that differ.
        """
        predictions = map_batch(prediction, "predicted normals", channels=3).astype(np.float64)
        targets = map_batch(target, "true normals", channels=3).astype(np.float64)
        check_same_shape(predictions, targets, "normals")
        valid = valid_normal(targets)
        angles = angle_degrees(predictions[valid], targets[valid])
        self.num_images += len(targets)
        self.invalid_pixels += int(valid.size - valid.sum())
        self.mean_angle.update(angles)
        self.within.update(np.where(np.isnan(angles), np.nan, angles < CLOSE_DEGREES))
        self.histogram.add(angles)
        if objects is not None:
            self.mean_angle_objects.update(angles[mask_batch(objects, valid.shape, "object mask")[valid]])

    def compute(self) -> dict[str, float]:
        """Return mean_angle, median_angle, mean_angle_objects (degrees), within_11_25 (share of pixels), and counts."""
        return {
            "mean_angle": self.mean_angle.compute(),
            "median_angle": self._median(),
            "within_11_25": self.within.compute(),
            "mean_angle_objects": self.mean_angle_objects.compute(),
            "num_images": self.num_images,
            "invalid_pixels": self.invalid_pixels,
        }

    def _median(self) -> float:
        if self.histogram.count == 0 or np.isnan(self.mean_angle.total):
            return float("nan")
        return self.histogram.middle()[0]
