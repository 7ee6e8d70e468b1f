"""The part of a picture that is generated anew: masks as users have them -> pixels and latent cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError
from mmdit.modalities.orientation import turn_pixels
from mmdit.modalities.stored import open_stored, to_numpy

# A mask's soft edges and a JPEG's ripples lie between black and white; of a photograph, nearly all does.
MASK_MARGIN = 48
MOST_BETWEEN = 0.5


@dataclass(frozen=True)
class Region:
    """A region of the output.

    Args:
        inside: (H, W) bool at the output's size, True = generate anew.
        given: (H', W') bool, the mask that it came from, which has the size of the conditions.
    """

    inside: Tensor
    given: Tensor

    @property
    def given_size(self) -> tuple[int, int]:
        """(height, width) of the mask that it came from."""
        return self.given.shape[0], self.given.shape[1]

    def known(self, downsampling: int) -> Tensor:
        """Cells of the latents to keep, (h, w) bool: those without a pixel inside."""
        cells = F.max_pool2d(self.inside[None, None].float(), downsampling)
        return cells[0, 0] == 0


def open_mask(path: Path) -> np.ndarray:
    """Read a mask's file, (H, W) bool, True = generate anew: an image (light on black; transparent is black), or ``.npy``.

    Raises:
        UserError: an unreadable file, or values other than those of ``read_region``.
    """
    stored = open_stored(path)
    try:
        mask = _as_bools(stored.array if stored.image is None else stored.image)
    except UserError as error:
        raise stored.error(str(error)) from None
    return turn_pixels(mask, stored.orientation)


def read_region(mask: Any, height: int, width: int) -> Region:
    """Read a mask and bring it to the size of the output; a pixel that shrinks is inside where any part of it was.

    Args:
        mask: (H, W), True or 1 = generate anew, 0 = keep: an array, a tensor, or a PIL image (grey above
            half counts, or 1 where all is 0 or 1).
        height, width: of the output.

    Raises:
        UserError: no such mask, another shape, other values, or nothing inside.
    """
    mask = _as_bools(mask)
    pixels = torch.from_numpy(mask.astype(np.float32))
    resized = F.adaptive_max_pool2d(pixels[None, None], (height, width))[0, 0]
    return Region(resized > 0, pixels > 0)


def _as_bools(mask: Any) -> np.ndarray:
    if isinstance(mask, Image.Image):
        mask = _light(mask)
    if isinstance(mask, Tensor):
        mask = to_numpy(mask, "mask")
    if not isinstance(mask, np.ndarray):
        raise UserError(
            f"mask is a {type(mask).__name__}: give an array, a tensor or a PIL image, 1 = generate anew, 0 = keep"
        )
    if np.ma.is_masked(mask):
        raise UserError("mask is an array with masked pixels: give mask.filled(...), 1 = generate anew, 0 = keep")
    if mask.ndim != 2 or mask.size == 0:
        raise UserError(f"mask has shape {mask.shape}: give (height, width)")
    if mask.dtype.kind not in "fiub" or not np.isin(mask, (0, 1)).all():
        raise UserError(f"mask holds {_values(mask)}: give True or 1 = generate anew, 0 = keep")
    if not mask.any():
        raise UserError("mask is 0 everywhere, which keeps the whole picture: mark what is generated anew with 1")
    return mask.astype(bool)


def _light(picture: Image.Image) -> np.ndarray:
    """Where a picture is light and opaque, or 1 if it holds 0 and 1 alone, (H, W) bool. Raises UserError for a photograph."""
    if picture.mode != "P" and len(picture.getbands()) == 1 and np.isin(np.asarray(picture), (0, 1)).all():
        return np.asarray(picture).astype(bool)
    grey = picture.convert("LA")
    light = np.asarray(Image.composite(grey.getchannel("L"), Image.new("L", grey.size), grey.getchannel("A")))
    between = float(((light > MASK_MARGIN) & (light < 255 - MASK_MARGIN)).mean()) if light.size else 0.0
    if between > MOST_BETWEEN:
        raise UserError(
            f"mask is neither black nor white in {between:.0%} of its pixels: give a mask, white = generate anew, black = keep"
        )
    return light > 127


def _values(mask: np.ndarray) -> str:
    if not np.issubdtype(mask.dtype, np.number):
        return f"values of type {mask.dtype}"
    return f"values from {mask.min():g} to {mask.max():g}"
