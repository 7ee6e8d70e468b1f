"""Colours and surfaces of procedural scenes, as drawn: colours are linear RGB in [0, 1]."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]
TEXTURES: tuple[str, ...] = ("plain", "checker", "stripes", "noise")


@dataclass(frozen=True)
class Material:
    """albedo: diffuse reflectance, linear RGB in [0, 1]; second: the other colour of a texture; gloss: 0 = matte."""

    albedo: Colour
    second: Colour | None = None
    texture: str = "plain"
    texture_scale: float = 1.0
    gloss: float = 0.0


def colour_distance(first: Colour, second: Colour) -> float:
    """Euclidean distance of linear colours in gamma-compressed RGB, about what the eye tells apart."""
    return float(np.linalg.norm(np.asarray(first) ** (1 / 2.2) - np.asarray(second) ** (1 / 2.2)))


def draw_colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    return _linear(*colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)))


def draw_colour_unlike(rng: np.random.Generator, palette: Sequence[Colour]) -> Colour:
    """A strong colour unlike all of ``palette``, as far as fifty draws allow."""
    for _ in range(50):
        albedo = draw_colour(rng, (0.45, 0.95), (0.6, 1.0))
        if min((colour_distance(albedo, other) for other in palette), default=1.0) > 0.38:
            break
    return albedo


def draw_material(rng: np.random.Generator, albedo: Colour, variety: bool, background: bool = False) -> Material:
    if not variety:
        return Material(albedo)
    texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
    second = tuple(float(c) * rng.uniform(0.35, 0.75) for c in albedo)
    gloss = 0.0 if background or rng.random() < 0.4 else float(rng.uniform(0.3, 1.0))
    return Material(albedo, second, texture, float(rng.uniform(2.0, 5.0)), gloss)  # type: ignore[arg-type]


def draw_background(rng: np.random.Generator, variety: bool) -> tuple[Material, Material]:
    floor = draw_colour(rng, (0.0, 0.4), (0.5, 0.9))
    while True:
        wall = draw_colour(rng, (0.0, 0.4), (0.55, 0.95))
        if colour_distance(floor, wall) > 0.15:
            return draw_material(rng, floor, variety, background=True), draw_material(
                rng, wall, variety, background=True
            )


def _linear(red: float, green: float, blue: float) -> Colour:
    """``decode_srgb`` of one colour, by Python's own power: a scene is the same, bit for bit, whatever numpy's rounds to."""
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue))  # type: ignore[return-value]
