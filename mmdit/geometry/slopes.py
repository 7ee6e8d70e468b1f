"""The normals of a relative depth map, for every focal length and shift that it may have.

With the pixel offset (x, y) from the image's centre, y down, focal length f in pixels, and w the disparity (sign
s = -1) or depth (s = +1) plus its shift, the normal of the surface through a pixel is proportional to
``(s f w_x, -s f w_y, w + s (x w_x + y w_y))``. The disparity of a plane is linear in (x, y): exact on planes.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d

Array = np.ndarray
FOCAL_RANGE = (0.5, 6.0)  # in half image widths: fields of view from 127 to 19 degrees
RATIO_RANGE = (1.03, 31.0)  # distance of the farthest point over that of the nearest
STEP = 0.05  # a second difference of this share of the map's range is a step, not a surface
REFERENCE_WIDTH = 64  # slopes are fitted over windows of 3 pixels at this width, and in proportion at others


def radius_of(depth: Array) -> int:
    """Radius in pixels of the windows in which slopes are fitted."""
    return max(1, round(depth.shape[1] / REFERENCE_WIDTH))


def slopes(depth: Array, radius: int) -> tuple[Array, Array]:
    """Slopes per pixel along x and y of the plane that fits (2 radius + 1)^2 pixels best, (H, W) each."""
    padded = np.pad(depth, radius, mode="reflect", reflect_type="odd")  # continues a plane as a plane
    offsets = np.arange(-radius, radius + 1, dtype=np.float64)
    slope, mean = offsets / (offsets**2).sum(), np.full(offsets.shape, 1 / len(offsets))
    inside = (slice(radius, -radius),) * 2
    along_x = correlate1d(correlate1d(padded, mean, axis=0), slope, axis=1)[inside]
    along_y = correlate1d(correlate1d(padded, slope, axis=0), mean, axis=1)[inside]
    return along_x, along_y


def steps(depth: Array, radius: int) -> Array:
    """True where the second difference along x or y is a jump for the range of the map, (H, W)."""
    padded = np.pad(depth, radius, mode="reflect", reflect_type="odd")
    height, width = depth.shape
    rows, columns = slice(radius, radius + height), slice(radius, radius + width)
    along_x = padded[rows, 2 * radius :] + padded[rows, : -2 * radius] - 2 * depth
    along_y = padded[2 * radius :, columns] + padded[: -2 * radius, columns] - 2 * depth
    return np.maximum(np.abs(along_x), np.abs(along_y)) > STEP * np.ptp(depth)


class NormalFamily:
    """The normals of a relative depth map for every focal length (half widths) and shift: ``(f a, f b, c + shift)``."""

    def __init__(self, depth: Array, space: str, radius: int) -> None:
        height, width = depth.shape
        half = width / 2
        sign = -1.0 if space == "disparity" else 1.0
        slope_x, slope_y = slopes(depth, radius)
        slope_x, slope_y = slope_x * half, slope_y * half
        x = (np.arange(width) + 0.5 - width / 2) / half
        y = (np.arange(height) + 0.5 - height / 2)[:, None] / half
        self.a, self.b = sign * slope_x, -sign * slope_y
        self.c = depth + sign * (x * slope_x + y * slope_y)

    def vectors(self, focal: float, shift: float) -> Array:
        """(H, W, 3), of any length."""
        return np.stack([focal * self.a, focal * self.b, self.c + shift], axis=-1)


def shift_of(ratio: float, low: float, extent: float) -> float:
    """The shift with (high + shift) / (low + shift) = ratio; a constant map gets a distance of 1."""
    return extent / (ratio - 1) - low if extent > 0 else 1 - low
