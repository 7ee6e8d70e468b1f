"""How like two pictures are: whether one copies the other, and CLIP's similarities of pictures and words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmdit.metrics.arrays import Array

COPY_QUANTILE = 0.01
_THUMBNAIL = 16


class CopyTest:
    """Whether a picture is a copy of its reference: nearer to it than all but 1% of the pairs of different real pictures are.

    The distance is the root mean square over a thumbnail of 16 x 16 pixels, sRGB in [0, 1]. A reference understood and shown
    anew has another floor, wall, pose and light.

    Args:
        pictures: real ones (H, W, 3), uint8 or in [0, 1]; at least two that differ, or nothing is called a copy.
    """

    def __init__(self, pictures: Sequence[Array]) -> None:
        rows = np.stack([thumbnail(picture).ravel() for picture in pictures]) if pictures else np.zeros((0, 1))
        first, second = np.triu_indices(len(rows), k=1)
        distances = np.sqrt(((rows[first] - rows[second]) ** 2).mean(axis=1))
        distances = distances[distances > 0]  # the same picture twice is no pair
        self.threshold = float(np.quantile(distances, COPY_QUANTILE)) if len(distances) else 0.0

    def is_copy(self, picture: Array, reference: Array) -> bool:
        difference = thumbnail(picture) - thumbnail(reference)
        return bool(np.sqrt((difference**2).mean()) < self.threshold)


def thumbnail(picture: Array) -> Array:
    """(H, W, 3), uint8 or sRGB in [0, 1] -> (16, 16, 3) in [0, 1]."""
    values = picture if picture.dtype == np.uint8 else np.round(picture * 255).astype(np.uint8)
    image = Image.fromarray(values).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64) / 255
