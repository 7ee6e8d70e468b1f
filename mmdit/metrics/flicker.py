"""How much maps of a video flicker, where the truth of every frame and the camera are known.

**Flicker** is what changes from frame to frame and should not: the mean over pixels of |(p_t - p_{t-1}) - (y_t - y_{t-1})| of a
prediction p and the truth y in the prediction's own space. The truth has 0, and a constant error too.

**Warped change** follows the points of the surfaces instead of the pixels, as OPW does, the metric of video depth (NVDS, arXiv
2307.08695; there by optical flow, here by the true depth and camera): the mean of |p_t(x) - p_{t-1}(x')| over the pixels x
whose point was seen at x' before. The truth's own is not 0: relative depth changes with the camera, and so does what a pixel
between two others holds. It stands beside as the control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.ndimage import map_coordinates

from mmdit.metrics.arrays import Array, MeanWithError, check_same_shape
from mmdit.metrics.normal import angle_degrees
from mmdit.modalities import Codec

_SAME_DEPTH = 0.02  # of the distance: a point that was seen before, and not hidden by what is nearer


@dataclass(frozen=True)
class View:
    """A frame's camera and what it sees, square pictures.

    Args:
        depth: (H, H) metres along the optical axis.
        eye: (3,) metres, world frame.
        world_to_camera: (3, 3), rows: right, up, towards the viewer.
        fov: full angle, degrees.
    """

    depth: Array
    eye: Array
    world_to_camera: Array
    fov: float

    @property
    def half_width(self) -> float:
        """Of the picture, at distance 1."""
        return math.tan(math.radians(self.fov) / 2)


@dataclass(frozen=True)
class Correspondence:
    """Where the points of a frame were in the one before.

    Args:
        rows, columns: (H, H) float64, pixels.
        seen: (H, H) bool, whether the point was inside the picture and not hidden.
    """

    rows: Array
    columns: Array
    seen: Array

    @classmethod
    def between(cls, now: View, before: View) -> Correspondence:
        """Project the points of ``now`` into ``before``."""
        size = now.depth.shape[0]
        depth = now.depth.astype(np.float64)
        centres = (np.arange(size) + 0.5) / size * 2 - 1
        right, up = np.meshgrid(centres, -centres)
        local = np.stack([right * now.half_width * depth, up * now.half_width * depth, -depth], axis=-1)
        world = local @ now.world_to_camera + now.eye
        seen_from = (world - before.eye) @ before.world_to_camera.T
        distance = -seen_from[..., 2]
        reach = np.maximum(distance, 1e-9) * before.half_width
        columns = (seen_from[..., 0] / reach + 1) / 2 * size - 0.5
        rows = (1 - seen_from[..., 1] / reach) / 2 * size - 0.5
        inside = (rows >= 0) & (rows <= size - 1) & (columns >= 0) & (columns <= size - 1) & (distance > 0)
        there = map_coordinates(before.depth.astype(np.float64), [rows, columns], order=1, mode="nearest")
        return cls(rows, columns, inside & (np.abs(there - distance) < _SAME_DEPTH * distance))

    def sample(self, values: Array) -> Array:
        """Values (H, H[, C]) of the frame before at these places, bilinear."""
        planes = np.atleast_3d(values.astype(np.float64))
        moved = [
            map_coordinates(plane, [self.rows, self.columns], order=1, mode="nearest")
            for plane in planes.T.swapaxes(1, 2)
        ]
        return np.stack(moved, axis=-1) if values.ndim == 3 else moved[0]


class Change:
    """Of a map of numbers, in hundredths of its unit."""

    unit: ClassVar[str] = "/100"

    def unwanted(self, prediction: Array, truth: Array) -> Array:
        """Change of the error from frame to frame, (F - 1, H, W), of (F, H, W[, C])."""
        error = np.diff(prediction.astype(np.float64) - truth, axis=0)
        return 100 * np.linalg.norm(error.reshape(*error.shape[:3], -1), axis=-1)

    def of_points(self, now: Array, before: Array, views: tuple[View, View], where: Correspondence) -> Array:
        """Change of the points that were seen before, (N,)."""
        change = (now - where.sample(before))[where.seen]
        return 100 * np.linalg.norm(change.reshape(len(change), -1), axis=-1)


class TurnChange(Change):
    """Of directions, in degrees; those of a surface that stands still turn with the camera."""

    unit: ClassVar[str] = "°"

    def unwanted(self, prediction: Array, truth: Array) -> Array:
        """Angle between what the direction is, and what it would be had it changed as the truth did."""
        expected = prediction[:-1].astype(np.float64) + np.diff(truth.astype(np.float64), axis=0)
        return angle_degrees(prediction[1:], expected)

    def of_points(self, now: Array, before: Array, views: tuple[View, View], where: Correspondence) -> Array:
        """Angle between the directions in the world."""
        turned = where.sample(before) @ views[1].world_to_camera
        return angle_degrees((now @ views[0].world_to_camera)[where.seen], turned[where.seen])


class LabelChange(Change):
    """Of labels, in percent of the pixels."""

    unit: ClassVar[str] = "%"

    def unwanted(self, prediction: Array, truth: Array) -> Array:
        """Where the label changes and the truth's does not."""
        changed = (prediction[1:] != prediction[:-1]) & (truth[1:] == truth[:-1])
        return 100.0 * changed

    def of_points(self, now: Array, before: Array, views: tuple[View, View], where: Correspondence) -> Array:
        """Where the label differs from that of the pixel it was in."""
        rows, columns = np.rint(where.rows).astype(int), np.rint(where.columns).astype(int)
        return 100.0 * (now[where.seen] != before[rows[where.seen], columns[where.seen]])


# by ``Codec.metric``; others change as numbers do
CHANGES: Mapping[str, type[Change]] = {"normal": TurnChange, "segmentation": LabelChange}


class FlickerMetrics:
    """Streaming means over videos of one modality."""

    def __init__(self, codec: Codec) -> None:
        self.change = CHANGES.get(codec.metric, Change)()
        self.flicker, self.warped = MeanWithError(), MeanWithError()

    def add(self, prediction: Array, truth: Array, views: Sequence[View], moves: Sequence[Correspondence]) -> None:
        """Add a video.

        Args:
            prediction, truth: (F, H, W[, C]), raw arrays in the prediction's space.
            views: of the F frames; moves: F - 1, from each to the one before.

        Raises:
            ValueError: shapes that differ.
        """
        check_same_shape(prediction, truth, "video")
        self.flicker.add(self.change.unwanted(prediction, truth).mean())
        pairs = zip(prediction[1:], prediction[:-1], views[1:], views[:-1], moves, strict=True)
        points = [self.change.of_points(now, before, (a, b), where) for now, before, a, b, where in pairs]
        self.warped.add(np.concatenate(points).mean())

    def compute(self) -> dict[str, Any]:
        """Means over videos, with standard errors; ``unit`` of both."""
        return {
            "flicker": self.flicker.mean,
            "warped_change": self.warped.mean,
            "standard_error": {"flicker": self.flicker.error, "warped_change": self.warped.error},
            "unit": self.change.unit,
        }
