"""Pictures that are of no modality."""

from __future__ import annotations

import numpy as np


def uncertainty_picture(values: np.ndarray, saturation_percentile: float = 95) -> np.ndarray:
    """Draw (H, W) from 0 on as grey, (H, W) uint8, white from the percentile on (diffusers' ``visualize_uncertainty``)."""
    top = np.percentile(values, saturation_percentile)
    return np.clip(values * (255 / max(top, 1e-12)), 0, 255).astype(np.uint8)
