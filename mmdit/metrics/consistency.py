"""Whether generated modalities agree with each other, with no ground truth to compare with.

**Depth against normals.** A relative depth map comes without intrinsics, scale and shift, so a surface normal does not
follow from it alone. An overall scale does not turn a surface, so two numbers are missing: the shift (equally: how
many times farther the farthest point is than the nearest) and the focal length. Both are fitted to each image, within
bounds of real cameras and scenes, to make the mean angle smallest; the remaining angle is reported. Two
numbers can't explain away thousands of pixels: ground truth scores low, and the normals of another image fitted in the
same way (the shuffled control) score high. They can trade places, so they do not estimate the camera;
``mmdit.geometry.camera`` does, with its error. The normals of a depth map are in ``mmdit.geometry.slopes``.

Left out, and counted: pixels at the ends of the relative range, where the codec clips and slopes are lost, and pixels
at a step of depth, where no surface can be differentiated.

**Segmentation.** The share of pixels at which the generated labels equal those the model sees in its generated RGB.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from mmdit.errors import unknown_name
from mmdit.geometry.slopes import FOCAL_RANGE, RATIO_RANGE, NormalFamily, radius_of, shift_of, steps
from mmdit.metrics.arrays import Array, RunningMean, check_same_shape, map_batch
from mmdit.metrics.normal import angle_degrees, valid_normal
from mmdit.metrics.segmentation import LabelSet
from mmdit.names import DEPTH_SPACES

MIN_PIXELS = 16
FIT_PIXELS = 1024  # the two numbers are searched on about as many, the angle is measured on all


@dataclass(frozen=True)
class DepthNormalFit:
    """What was left of the angle, and what was fitted.

    angle: mean over the pixels used, degrees; focal: in half image widths; ratio: farthest over nearest distance;
    pixels_used: share of the image. angle is NaN where fewer than 16 pixels were usable.
    """

    angle: float
    focal: float
    ratio: float
    pixels_used: float


def _check_depth(depth: Any, space: str) -> Array:
    if space not in DEPTH_SPACES:
        raise unknown_name("depth space", space, DEPTH_SPACES)
    array = map_batch(depth, "depth").astype(np.float64)
    if len(array) != 1 or min(array.shape[1:]) < 3:
        raise ValueError(f"depth has shape {array.shape}: give one map of at least 3 x 3 pixels")
    return array[0]


def fit_depth_to_normals(depth: Any, normals: Any, space: str) -> DepthNormalFit:
    """Fit shift and focal length of a relative depth map (H, W) to normals (H, W, 3) and return the angle that is left.

    Normals (0, 0, 0) and NaN are invalid pixels. NaN in the depth map gives an angle of NaN.

    Raises:
        ValueError: an unknown space, or shapes that don't fit.
    """
    array = _check_depth(depth, space)
    vectors = map_batch(normals, "normals", channels=3).astype(np.float64)[0]
    check_same_shape(array, vectors[..., 0], "depth and normals")
    if not np.isfinite(array).all():
        return DepthNormalFit(float("nan"), float("nan"), float("nan"), 0.0)
    low, high = array.min(), array.max()
    radius = radius_of(array)
    used = valid_normal(vectors)
    if high > low:
        used &= (array > low) & (array < high) & ~steps(array, radius)
    if used.sum() < MIN_PIXELS:
        return DepthNormalFit(float("nan"), float("nan"), float("nan"), float(used.mean()))
    family = NormalFamily(array, space, radius)
    stride = max(1, int(used.sum()) // FIT_PIXELS)
    focal, ratio = _search(family, vectors, used, stride, low, high - low)
    derived = family.vectors(focal, shift_of(ratio, low, high - low))[used]
    angle = float(angle_degrees(derived, vectors[used]).mean())
    return DepthNormalFit(angle, focal, ratio, float(used.mean()))


def _search(
    family: NormalFamily, vectors: Array, used: Array, stride: int, low: float, extent: float
) -> tuple[float, float]:
    """Best (focal, ratio): a grid over the logarithms of focal length and ratio - 1, then Nelder-Mead."""
    a, b, c = (plane[used][::stride] for plane in (family.a, family.b, family.c))
    normal = vectors[used][::stride]
    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    across, squared, ahead = a * normal[:, 0] + b * normal[:, 1], a**2 + b**2, normal[:, 2]

    def mean_angle(logarithms: Sequence[float] | Array) -> float:
        focal, z = np.exp(logarithms[0]), c + shift_of(1 + np.exp(logarithms[1]), low, extent)
        length = np.sqrt(focal**2 * squared + z**2)
        cosine = (focal * across + z * ahead) / np.maximum(length, 1e-30)
        return float(np.arccos(cosine.clip(-1, 1)).mean())

    bounds = [
        (math.log(FOCAL_RANGE[0]), math.log(FOCAL_RANGE[1])),
        (math.log(RATIO_RANGE[0] - 1), math.log(RATIO_RANGE[1] - 1)),
    ]
    grid = itertools.product(np.linspace(*bounds[0], 10), np.linspace(*bounds[1], 12))
    start = min(grid, key=mean_angle)
    # The valley runs along the diagonal, where focal length and shift trade places, and a simplex follows it.
    options = {"maxfev": 150, "xatol": 1e-3, "fatol": 1e-6}
    best = minimize(mean_angle, start, method="Nelder-Mead", bounds=bounds, options=options).x
    return float(np.exp(best[0])), float(1 + np.exp(best[1]))


class ConsistencyMetrics:
    """Streaming agreement between the modalities of generated samples.

    Args:
        space: the depth maps', "depth" or "disparity"; None = no depth.
        labels: the segmentation's classes; None = no segmentation.
    """

    def __init__(self, space: str | None, labels: LabelSet | None) -> None:
        self.space, self.labels = space, labels
        self.angle = RunningMean()
        self.pixels_used = RunningMean()
        self.num_skipped = 0
        self.agreement = RunningMean()
        self.agreement_objects = RunningMean()

    def update_geometry(self, depth: Any, normals: Any) -> None:
        """Add one sample's relative depth (H, W) and normals (H, W, 3). NaN in them makes the mean NaN."""
        if self.space is None:
            raise ValueError("these metrics were built without a depth space")
        fit = fit_depth_to_normals(depth, normals, self.space)
        self.pixels_used.update(fit.pixels_used)
        if np.isnan(fit.angle) and np.isfinite(np.asarray(depth)).all():
            self.num_skipped += 1
        else:
            self.angle.update(fit.angle)

    def update_segmentation(self, generated: Any, reestimated: Any) -> None:
        """Add one sample's generated labels (H, W) and those re-estimated from its RGB."""
        if self.labels is None:
            raise ValueError("these metrics were built without segmentation classes")
        first, second = map_batch(generated, "generated labels"), map_batch(reestimated, "re-estimated labels")
        check_same_shape(second, first, "labels")
        same = first == second
        objects = self.labels.objects(first) | self.labels.objects(second)
        self.agreement.update(same)
        self.agreement_objects.update(same[objects])

    def compute(self) -> dict[str, float]:
        """Return the means; NaN where nothing was measured.

        depth_normal_angle: degrees; segmentation_agreement: share of pixels; segmentation_agreement_objects: share of
        the pixels that either map calls an object; pixels_used: share of the pixels behind the angle; num_skipped:
        samples with too few of them.
        """
        return {
            "depth_normal_angle": self.angle.compute(),
            "segmentation_agreement": self.agreement.compute(),
            "segmentation_agreement_objects": self.agreement_objects.compute(),
            "pixels_used": self.pixels_used.compute(),
            "num_skipped": self.num_skipped,
        }
