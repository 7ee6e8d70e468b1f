"""The ways in which raw arrays (H, W[, C]) are resized."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def nearest_pixel(raw: np.ndarray, height: int, width: int) -> np.ndarray:
    """Take the pixel at each new pixel's centre; any type of numbers."""
    if raw.shape[:2] == (height, width):
        return raw
    rows = ((np.arange(height) + 0.5) * raw.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * raw.shape[1] / width).astype(np.int64)
    return raw[rows[:, None], columns[None, :]]


def between_pixels(raw: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, without antialiasing, float32: to enlarge what a network of low resolution says."""
    channels = torch.from_numpy(np.ascontiguousarray(raw.reshape(*raw.shape[:2], -1))).permute(2, 0, 1)
    larger = F.interpolate(channels[None].float(), (height, width), mode="bilinear", align_corners=False)[0]
    return larger.permute(1, 2, 0).numpy() if raw.ndim == 3 else larger[0].numpy()


def antialiased(raw: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, with antialiasing where it shrinks, float32 channel by channel."""
    if raw.shape[:2] == (height, width):
        return raw
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BILINEAR))
        for plane in np.moveaxis(np.atleast_3d(raw), -1, 0)
    ]
    return np.stack(planes, axis=-1) if raw.ndim == 3 else planes[0]
