"""Crop and resize all modalities of a sample alike, whatever their number.

Raw arrays are transformed before their codec sees them, so a depth map is normalised over the pixels that are kept, and
labels, depth and normals are resized by the nearest pixel: an average of two labels or across an edge means nothing.
Resizing is the codec's (``resize``): it alone knows what may be averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.codec import Codec

CROPS = ("center", "none")


@dataclass(frozen=True)
class Draw:
    """A crop box in pixels of the source, and the size it is resized to."""

    top: int
    left: int
    crop_height: int
    crop_width: int
    height: int
    width: int


class JointTransform:
    """Applies one crop to every modality of a sample.

    Args:
        size: output size, one number for a square or (height, width); None keeps the source's size.
        crop: "center": the largest box of the output's aspect ratio, then resized; "none": the whole image is resized,
            even if its aspect ratio changes.
    """

    def __init__(self, size: int | tuple[int, int] | None = None, crop: str = "center") -> None:
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"image size is {self.size}: give positive numbers of pixels")
        if crop not in CROPS:
            raise unknown_name("crop", crop, CROPS)
        self.crop = crop

    def draw(self, height: int, width: int) -> Draw:
        """The box for a source of (height, width)."""
        out_height, out_width = self.size or (height, width)
        crop_height, crop_width = height, width
        if self.crop != "none":
            scale = min(height / out_height, width / out_width)
            crop_height, crop_width = max(1, round(out_height * scale)), max(1, round(out_width * scale))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return Draw(top, left, crop_height, crop_width, out_height, out_width)

    def __call__(self, raw: Mapping[str, np.ndarray], codecs: Mapping[str, Codec]) -> dict[str, Tensor]:
        """Transform and encode ``raw``, name -> (H, W[, 3]) of one size, to name -> (3, height, width) in [-1, 1]."""
        sizes = {name: array.shape[:2] for name, array in raw.items()}
        if len(set(sizes.values())) != 1:
            listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
            raise UserError(f"the modalities differ in size: {listed}; they must be aligned pixel by pixel")
        height, width = next(iter(sizes.values()))
        draw = self.draw(height, width)
        return {name: codecs[name].encode(crop_and_resize(array, draw, codecs[name])) for name, array in raw.items()}


def crop_and_resize(array: np.ndarray, draw: Draw, codec: Codec) -> np.ndarray:
    """Crop (H, W[, C]) to the box of ``draw`` and resize it as the codec does."""
    box = array[draw.top : draw.top + draw.crop_height, draw.left : draw.left + draw.crop_width]
    return codec.resize(box, draw.height, draw.width)
