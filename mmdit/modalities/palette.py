"""Colours for labels, far from each other."""

from __future__ import annotations

import numpy as np

from mmdit.errors import UserError


def class_palette(num_colors: int) -> np.ndarray:
    """Return (num_colors, 3) uint8 of the coarsest RGB grid that has so many; each far from those before it, black first.

    Up to 64 it is ``generic_palette``.
    """
    steps = max(4, int(np.ceil(num_colors ** (1 / 3) - 1e-9)))
    levels = np.linspace(0, 255, steps).round().astype(np.int64)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = [0]
    distance = ((grid - grid[0]) ** 2).sum(axis=1)
    while len(chosen) < num_colors:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((grid - grid[chosen[-1]]) ** 2).sum(axis=1))
    return grid[chosen].astype(np.uint8)


def generic_palette(num_colors: int = 64) -> np.ndarray:
    """Return (num_colors, 3) uint8, at least 85 apart: a 4 x 4 x 4 grid, each colour far from those before it."""
    if not 1 <= num_colors <= 64:
        raise UserError(f"the generic palette has 64 colours, not {num_colors}: give every class its own colour")
    return class_palette(num_colors)
