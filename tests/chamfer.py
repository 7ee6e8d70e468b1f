"""Chamfer distance between point sets (Fan et al., arXiv 1612.00603, without the squares)."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


def chamfer_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean distance to the nearest point of the other set, averaged over both directions, in the points' unit.

    Args:
        first, second: (N, 3) and (M, 3), not empty.

    Raises:
        ValueError: another shape, no points, or values that are not finite.
    """
    for name, points in (("first", first), ("second", second)):
        if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
            raise ValueError(f"{name} is {points.shape}: give finite points, (N, 3)")
    there = cKDTree(second).query(first)[0].mean()
    back = cKDTree(first).query(second)[0].mean()
    return float((there + back) / 2)
