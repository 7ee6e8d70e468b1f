"""Depth errors under the affine-invariant protocol of MiDaS (arXiv 1907.01341) and Marigold (arXiv 2312.02145).

A relative depth map is known up to scale and shift *in the space it is declared in*: depth or disparity (1 / depth).
Per image, the scale and shift that fit the target best in that space (least squares over the valid pixels) are applied;
a disparity is then inverted, depth is clamped to the range of the data, and errors are measured in depth space.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmdit.errors import UserError, unknown_name
from mmdit.metrics.arrays import Array, RunningMean, check_same_shape, map_batch, mask_batch
from mmdit.names import DEPTH_SPACES

DEPTH_RANGE = (1e-3, 80.0)  # metres; Marigold's range for outdoor scenes
DELTA1, DELTA1_05 = 1.25, 1.05


def fit_scale_and_shift(prediction: Array, target: Array) -> tuple[float, float]:
    """Least squares: the (scale, shift) that minimise the sum of (scale * prediction + shift - target)^2.

    A constant prediction has no scale: the answer is then (0, mean of the target).
    """
    x, y = np.asarray(prediction, dtype=np.float64).ravel(), np.asarray(target, dtype=np.float64).ravel()
    mean_x, mean_y = x.mean(), y.mean()
    spread = ((x - mean_x) ** 2).sum()
    if spread <= x.size * (1e-9 * np.abs(x).max()) ** 2:
        return 0.0, float(mean_y)
    scale = ((x - mean_x) * (y - mean_y)).sum() / spread
    return float(scale), float(mean_y - scale * mean_x)


def valid_depth(target: Array) -> Array:
    """True where a metric depth map holds a measurement: finite and positive."""
    return np.isfinite(target) & (target > 0)


def align_depth(
    prediction: Array,
    target: Array,
    space: str,
    depth_range: tuple[float, float] = DEPTH_RANGE,
    valid: Array | None = None,
) -> Array:
    """Return the prediction (H, W) as metric depth (H, W), float64: fitted in its space, inverted, clamped.

    Args:
        prediction: relative depth in ``space``.
        target: metres along the optical axis; pixels that are not finite and positive are not fitted.
        space: "depth" or "disparity".
        depth_range: metres; an aligned disparity is clamped to the inverses, so it is positive before it is inverted.
        valid: pixels to fit; None = all that are valid in the target. There must be two or more.
    """
    fitted = valid_depth(target) if valid is None else valid
    reference = np.where(fitted, target, 1.0)
    nearest, farthest = depth_range
    if space == "disparity":
        scale, shift = fit_scale_and_shift(prediction[fitted], 1 / reference[fitted])
        return 1 / np.clip(scale * prediction + shift, 1 / farthest, 1 / nearest)
    scale, shift = fit_scale_and_shift(prediction[fitted], reference[fitted])
    return np.clip(scale * prediction + shift, nearest, farthest)


class DepthMetrics:
    """Streaming mean over images of the errors of relative depth.

    Args:
        space: what the predictions are affine in, "depth" or "disparity": the depth codec's ``space``.
        depth_range: (nearest, farthest) in metres that aligned depth is clamped to.

    An image with fewer than two valid pixels has no scale and shift: it is left out and counted in ``num_skipped``. A
    prediction that is not finite at a valid pixel makes the image's errors, and so the mean, NaN: it is never dropped.
    """

    columns: ClassVar[tuple[str, ...]] = ("abs_rel", "delta1", "delta1_05")
    higher_is_better: ClassVar[frozenset[str]] = frozenset({"delta1", "delta1_05"})

    def __init__(self, space: str, depth_range: tuple[float, float] = DEPTH_RANGE) -> None:
        if space not in DEPTH_SPACES:
            raise unknown_name("depth space", space, DEPTH_SPACES)
        if not 0 < depth_range[0] < depth_range[1]:
            raise UserError(f"depth_range is {depth_range}: give two rising positive numbers of metres")
        self.space = space
        self.depth_range = depth_range
        self.means = {name: RunningMean() for name in ("abs_rel", "delta1", "delta1_05", "rmse")}
        self.abs_rel_objects = RunningMean()
        self.num_skipped = 0
        self.invalid_pixels = 0

    @classmethod
    def for_codec(cls, codec: Any, depth_range: tuple[float, float]) -> DepthMetrics:
        return cls(codec.space, depth_range)

    def add(self, prediction: Any, truth: Any, *, objects: Any = None, category: str | None = None) -> None:
        """Add one image, as ``update`` does."""
        self.update(prediction, truth, objects)

    def update(self, prediction: Any, target: Any, objects: Any | None = None) -> None:
        """Add images.

        Args:
            prediction: (H, W) or (N, H, W), relative depth in ``space``.
            target: the same shape, metres; 0, negative and non-finite values are invalid.
            objects: the same shape, True on objects, for ``abs_rel_objects``; None = unknown.

        Raises:
            ValueError: shapes that differ.
        """
        predictions = map_batch(prediction, "predicted depth").astype(np.float64)
        targets = map_batch(target, "true depth").astype(np.float64)
        check_same_shape(predictions, targets, "depth")
        masks = None if objects is None else mask_batch(objects, targets.shape, "object mask")
        for index, (predicted, true) in enumerate(zip(predictions, targets, strict=True)):
            self._update_image(predicted, true, None if masks is None else masks[index])

    def _update_image(self, prediction: Array, target: Array, objects: Array | None) -> None:
        valid = valid_depth(target)
        self.invalid_pixels += int(valid.size - valid.sum())
        if valid.sum() < 2:
            self.num_skipped += 1
            return
        if not np.isfinite(prediction[valid]).all():
            for mean in (*self.means.values(), self.abs_rel_objects):
                mean.update(np.nan)
            return
        estimate = align_depth(prediction, target, self.space, self.depth_range, valid)[valid]
        true = target[valid]
        relative = np.abs(estimate - true) / true
        ratio = np.maximum(estimate / true, true / estimate)
        self.means["abs_rel"].update(relative.mean())
        self.means["delta1"].update((ratio < DELTA1).mean())
        self.means["delta1_05"].update((ratio < DELTA1_05).mean())
        self.means["rmse"].update(np.sqrt(((estimate - true) ** 2).mean()))
        if objects is not None and objects[valid].any():
            self.abs_rel_objects.update(relative[objects[valid]].mean())

    def compute(self) -> dict[str, float]:
        """Return the means over images, NaN where none could be measured, and counts.

        abs_rel, abs_rel_objects; delta1: share within a factor 1.25; delta1_05: within 1.05; rmse: metres.
        """
        return {
            **{name: mean.compute() for name, mean in self.means.items()},
            "abs_rel_objects": self.abs_rel_objects.compute(),
            "num_images": self.means["abs_rel"].count,
            "num_skipped": self.num_skipped,
            "invalid_pixels": self.invalid_pixels,
        }
