"""What a depth map holds: as it is named, and as its numbers and its picture suggest.

Distances, affine depth (far = white: Marigold) and affine disparity (near = white: ControlNet, MiDaS, Depth Anything, most of
Blender's) are stored in the same kinds of files. Their numbers tell some of them apart. The rest is told by what is true of
nearly every photograph, that its lower part is nearer (the ground-plane prior of Make3D, Saxena et al. 2009), and said aloud.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError
from mmdit.modalities.stored import to_numpy

DEPTH_VALUES = ("auto", "metric", "relative", "near_white")
MAX_UNITS = 65535  # of a 16-bit image
FAR = 1e9  # distances that renderers write where nothing was hit: Blender's 1e10
TREND = 0.3  # scenes with a floor have 0.6 to 0.9
MIN_SIDE = 16  # pixels: fewer have no trend


@dataclass(frozen=True)
class Guess:
    """What a map was taken for.

    Args:
        kind: "metric"; "relative", in the reader's own space; "near_white" or "far_white", relative with that end large.
        reason: why, for the user; "" = by the kind of its numbers.
        conflict: whether its picture speaks against it, so that the user is to be asked.
    """

    kind: str
    reason: str = ""
    conflict: bool = False


def vertical_trend(values: np.ndarray) -> float:
    """Correlation of a map (H, W) with the row, 1 = it rises evenly to the bottom; not finite is left out, small maps have 0."""
    valid = np.isfinite(values)
    if min(values.shape) < MIN_SIDE or valid.sum() < MIN_SIDE**2:
        return 0.0
    rows = np.broadcast_to(np.arange(values.shape[0])[:, None], values.shape)[valid].astype(np.float64)
    numbers = values[valid].astype(np.float64)
    rows, numbers = rows - rows.mean(), numbers - numbers.mean()
    spread = np.sqrt((rows**2).sum() * (numbers**2).sum())
    return float((rows * numbers).sum() / spread) if spread > 0 else 0.0


def guess_values(values: np.ndarray, dtype: np.dtype) -> Guess:
    """Guess what a map (H, W) of a file or a picture holds; ``dtype`` is that of the file."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    pictured = dtype == np.uint8 or (dtype.kind == "f" and finite.size > 0 and low >= 0 and high <= 1)
    if pictured or (dtype.kind in "iu" and (low, high) == (0, MAX_UNITS)):
        trend = vertical_trend(values)
        if trend > TREND:
            return Guess("near_white", "because its lower part, which is usually nearer, is brighter")
        if trend < -TREND:
            return Guess("far_white", "because its lower part, which is usually nearer, is darker")
        return Guess("relative" if pictured else "metric", "a guess: nothing tells which end is near")
    usable = np.where(np.isfinite(values) & (values > 0) & (values < FAR), values, np.nan)
    return Guess("metric", conflict=vertical_trend(usable) > TREND)


def invert_depth(depth: Any) -> Any:
    """Exchange near and far of a relative depth map, of whole numbers or floats; NaN stays.

    Args:
        depth: an array or tensor of any shape, or a grey PIL image. 8 and 16 bits are turned within their range, floats that
            all lie in [0, 1] within it, others between their smallest and largest.

    Returns:
        The same kind of thing.

    Raises:
        UserError: booleans, text, or nothing to turn. Distances have no such turn: the inverse of 1 m is 1 / m.
    """
    if isinstance(depth, Image.Image):
        return Image.fromarray(invert_depth(np.asarray(depth)))
    if isinstance(depth, Tensor):
        return torch.from_numpy(np.asarray(invert_depth(to_numpy(depth, "depth to invert")))).to(depth.device)
    values = np.asanyarray(depth)  # what is masked stays so
    known = np.ma.compressed(values)
    if values.dtype.kind not in "fiu" or known.size == 0:
        raise UserError(f"depth to invert is {values.dtype} {values.shape}: give numbers")
    if values.dtype.kind != "f":
        top = {1: 255, 2: MAX_UNITS}.get(values.dtype.itemsize, int(known.max()) + int(known.min()))
        return (top - values.astype(np.int64)).astype(values.dtype)
    finite = known[np.isfinite(known)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 1)
    return values.dtype.type(1 if low >= 0 and high <= 1 else low + high) - values
