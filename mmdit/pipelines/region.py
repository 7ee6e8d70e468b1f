"""The part of a picture that is generated anew: masks as users have them -> pixels and latent cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError


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


def read_region(mask: Any, height: int, width: int) -> Region:
    """Read a mask and bring it to the size of the output; a pixel that shrinks is inside where any part of it was.

    Args:
        mask: (H, W), True or 1 = generate anew, 0 = keep: an array, a tensor, or a PIL image (grey above half counts).
        height, width: of the output.

    Raises:
        UserError: no such mask, another shape, other values, or nothing inside.
    """
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L")) > 127
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().numpy()
    if not isinstance(mask, np.ndarray):
        raise UserError(
            f"mask is a {type(mask).__name__}: give an array, a tensor or a PIL image, 1 = generate anew, 0 = keep"
        )
    if mask.ndim != 2 or mask.size == 0:
        raise UserError(f"mask has shape {mask.shape}: give (height, width)")
    if not (mask.dtype == bool or (np.issubdtype(mask.dtype, np.number) and np.isin(mask, (0, 1)).all())):
        raise UserError(f"mask holds {_values(mask)}: give True or 1 = generate anew, 0 = keep")
    if not mask.any():
        raise UserError("mask is 0 everywhere, which keeps the whole picture: mark what is generated anew with 1")
    pixels = torch.from_numpy(mask.astype(np.float32))
    resized = F.adaptive_max_pool2d(pixels[None, None], (height, width))[0, 0]
    return Region(resized > 0, pixels > 0)


def _values(mask: np.ndarray) -> str:
    if not np.issubdtype(mask.dtype, np.number):
        return f"values of type {mask.dtype}"
    return f"values from {mask.min():g} to {mask.max():g}"
