"""Resize, crop and mirror all modalities of a sample alike: one draw, whatever the number of modalities.

Raw arrays are transformed before their codec sees them, so a depth map is normalised over the pixels that are kept, and
labels, depth and normals are resized by the nearest pixel: an average of two labels or across an edge means nothing.
Resizing and mirroring are the codec's (``resize``, ``flip``): it alone knows what may be averaged and which signs change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.codec import Codec

CROPS = ("center", "random", "none")


@dataclass(frozen=True)
class Draw:
    """A crop box in pixels of the source, the size it is resized to, and whether it is mirrored."""

    top: int
    left: int
    crop_height: int
    crop_width: int
    height: int
    width: int
    flip: bool = False


class JointTransform:
    """Draws one crop and one flip per sample and applies them to every modality.

    Args:
        size: output size, one number for a square or (height, width); None keeps the source's size.
        crop: "center" or "random": the largest box of the output's aspect ratio, then resized; "none": the whole image
            is resized, even if its aspect ratio changes.
        flip_prob: probability of mirroring left to right.
    """

    def __init__(self, size: int | tuple[int, int] | None = None, crop: str = "center", flip_prob: float = 0.0) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"image size is {self.size}: give positive numbers of pixels")
        if crop not in CROPS:
            raise unknown_name("crop", crop, CROPS)
        if not 0 <= flip_prob <= 1:
            raise UserError(f"flip_prob is {flip_prob}: give a probability from 0 to 1")
        self.crop, self.flip_prob = crop, flip_prob

    def draw(self, height: int, width: int, generator: torch.Generator | None = None) -> Draw:
        """Draw for a source of (height, width); a generator is needed where anything is random."""
        if generator is None and (self.crop == "random" or 0 < self.flip_prob < 1):
            raise UserError("a random crop or flip needs an explicit torch.Generator")
        out_height, out_width = self.size or (height, width)
        crop_height, crop_width = height, width
        if self.crop != "none":
            scale = min(height / out_height, width / out_width)
            crop_height, crop_width = max(1, round(out_height * scale)), max(1, round(out_width * scale))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        if self.crop == "random":
            top = int(torch.randint(height - crop_height + 1, (), generator=generator))
            left = int(torch.randint(width - crop_width + 1, (), generator=generator))
        flip = self.flip_prob == 1 or (
            self.flip_prob > 0 and torch.rand((), generator=generator).item() < self.flip_prob
        )
        return Draw(top, left, crop_height, crop_width, out_height, out_width, bool(flip))

    def __call__(
        self,
        raw: Mapping[str, np.ndarray],
        codecs: Mapping[str, Codec],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Transform and encode ``raw``, name -> (H, W[, 3]) of one size, to name -> (3, height, width) in [-1, 1]."""
        sizes = {name: array.shape[:2] for name, array in raw.items()}
        if len(set(sizes.values())) != 1:
            listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
            raise UserError(f"the modalities differ in size: {listed}; they must be aligned pixel by pixel")
        height, width = next(iter(sizes.values()))
        draw = self.draw(height, width, generator)
        encoded = {}
        for name, array in raw.items():
            image = codecs[name].encode(crop_and_resize(array, draw, codecs[name]))
            encoded[name] = codecs[name].flip(image) if draw.flip else image
        return encoded


def crop_and_resize(array: np.ndarray, draw: Draw, codec: Codec) -> np.ndarray:
    """Crop (H, W[, C]) to the box of ``draw`` and resize it as the codec does."""
    box = array[draw.top : draw.top + draw.crop_height, draw.left : draw.left + draw.crop_width]
    return codec.resize(box, draw.height, draw.width)
