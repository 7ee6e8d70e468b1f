"""How like two pictures are: whether one copies the other, and CLIP's similarities of pictures and words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmdit.metrics.arrays import Array

COPY_QUANTILE = 0.01
_THUMBNAIL = 16


class CopyTest:
    """Whether a picture is a copy of its reference: nearer to it than 99% of other real pictures of the same subject are.

    The distance is the root mean square over a thumbnail of 16 x 16 pixels, sRGB in [0, 1]. A subject that is understood and
    shown anew has another floor, wall, pose and light.

    Args:
        pairs: two different real pictures, uint8 (H, W, 3), of each subject; without any, nothing is called a copy.
    """

    def __init__(self, pairs: Sequence[tuple[Array, Array]]) -> None:
        distances = [thumbnail_distance(one, other) for one, other in pairs]
        self.threshold = float(np.quantile(distances, COPY_QUANTILE, method="lower")) if distances else 0.0

    def is_copy(self, picture: Array, reference: Array) -> bool:
        return thumbnail_distance(picture, reference) < self.threshold


def thumbnail_distance(picture: Array, other: Array) -> float:
    """Root mean square of the difference of two pictures' thumbnails."""
    return float(np.sqrt(((thumbnail(picture) - thumbnail(other)) ** 2).mean()))


def thumbnail(picture: Array) -> Array:
    """uint8 (H, W, 3) -> (16, 16, 3) in [0, 1]."""
    image = Image.fromarray(picture).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64) / 255
