"""Relative depth as the positive numbers that datasets hold.

Depth or disparity (1 / depth) known up to an unknown scale and shift is stored as depth from 1 to ``RELATIVE_RANGE`` such that
the space it is linear in is kept: a depth codec of the same ``space`` gives it back, because the codec normalises each
image in that space. dataset.json names the space.
"""

from __future__ import annotations

import numpy as np

RELATIVE_RANGE = 32.0
RELATIVE_SCALE = 0.0005  # 32 is 64000 units; disparity from 1/32 to 1 is kept to 1/4000 of its range at the nearest


def from_disparity(disparity: np.ndarray) -> np.ndarray:
    """Relative disparity (H, W), larger = nearer, any scale and shift -> depth from 1 to ``RELATIVE_RANGE``, float32."""
    return (1 / (1 / RELATIVE_RANGE + (1 - 1 / RELATIVE_RANGE) * _unit_range(disparity))).astype(np.float32)


def from_relative_depth(depth: np.ndarray) -> np.ndarray:
    """Relative depth (H, W), larger = farther, any scale and shift -> depth from 1 to ``RELATIVE_RANGE``, float32."""
    return (1 + (RELATIVE_RANGE - 1) * _unit_range(depth)).astype(np.float32)


def _unit_range(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    # A map of one value says nothing; it becomes one of one value.
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
