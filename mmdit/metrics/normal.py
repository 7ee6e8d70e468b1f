"""Angles between predicted and true surface normals, in degrees, over pixels (Bae et al., arXiv 2109.09881)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmdit.metrics.arrays import Array, RunningMean, check_same_shape, map_batch, mask_batch

CLOSE_DEGREES = 11.25
MEDIAN_BINS = 18_000  # of 0.01 degrees: the median streams and is as fine as that


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
        self.histogram = np.zeros(MEDIAN_BINS, dtype=np.int64)
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
        known = angles[~np.isnan(angles)]
        bins = np.minimum((known * (MEDIAN_BINS / 180)).astype(np.int64), MEDIAN_BINS - 1)
        self.histogram += np.bincount(bins, minlength=MEDIAN_BINS)
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
        if self.histogram.sum() == 0 or np.isnan(self.mean_angle.total):
            return float("nan")
        middle = int(np.searchsorted(self.histogram.cumsum(), self.histogram.sum() / 2))
        return (middle + 0.5) * 180 / MEDIAN_BINS
