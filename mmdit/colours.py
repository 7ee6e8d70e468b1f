"""Names of colours: one table of hue intervals, for captions, prompts and what measures them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

# name -> (from, to) hue in degrees of the HSV circle, the end excluded; red goes through 0.
HUES: dict[str, tuple[float, float]] = {
    "red": (338.0, 15.0),
    "orange": (15.0, 42.0),
    "yellow": (42.0, 70.0),
    "green": (70.0, 165.0),
    "cyan": (165.0, 195.0),
    "blue": (195.0, 255.0),
    "purple": (255.0, 288.0),
    "pink": (288.0, 338.0),
}
COLOUR_NAMES: tuple[str, ...] = tuple(HUES)
# Below this saturation (HSV of sRGB) a colour is told by its lightness.
GREY_SATURATION = 0.15


def encode_srgb(linear: Sequence[float] | np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] -> sRGB in [0, 1] (IEC 61966-2-1), any shape."""
    linear = np.clip(np.asarray(linear, dtype=np.float64), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode_srgb(encoded: Sequence[float] | np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] -> linear light in [0, 1] (IEC 61966-2-1), any shape."""
    encoded = np.clip(np.asarray(encoded, dtype=np.float64), 0, 1)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def hue_name(hue: float) -> str:
    """Name of a hue in degrees."""
    hue = hue % 360
    for name, (low, high) in HUES.items():
        if low <= hue < high or (low > high and (hue >= low or hue < high)):
            return name
    raise AssertionError(hue)


def colour_name(rgb: Sequence[float] | np.ndarray) -> str:
    """Name of an sRGB colour in [0, 1]: a hue of ``HUES``, or "black", "grey", "white" where it has hardly any."""
    red, green, blue = (float(c) for c in rgb)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if saturation < GREY_SATURATION or value < 0.1:
        return "black" if value < 0.25 else "grey" if value < 0.8 else "white"
    return hue_name(hue * 360)
