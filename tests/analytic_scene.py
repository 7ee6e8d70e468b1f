"""A scene in closed form: a floor, a wall and a ball before a pinhole camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scene:
    """distances (H, W) along the axis; normal (H, W, 3); points (H, W, 3); relative: space -> (H, W) in [0, 1]."""

    distances: np.ndarray
    normal: np.ndarray
    points: np.ndarray
    relative: dict[str, np.ndarray]


def analytic_scene(fov: float = 40.0, height: int = 64, width: int = 64) -> Scene:
    """See it with a horizontal field of view in degrees."""
    half = np.tan(np.radians(fov) / 2)
    x = (2 * np.arange(width) + 1 - width) / width * half
    y = -(2 * np.arange(height) + 1 - height) / width * half
    ray = np.stack([*np.meshgrid(x, y), -np.ones((height, width))], axis=-1)
    pitch = np.radians(20)
    planes = [
        (np.array([0, np.cos(pitch), np.sin(pitch)]), 1.2),
        (np.array([0.3, -np.sin(pitch), np.cos(pitch)]), 5.0),
    ]
    z, normal = np.full((height, width), np.inf), np.zeros((height, width, 3))
    for direction, distance in planes:
        length = np.linalg.norm(direction)
        along = ray @ direction
        t = np.where(along < 0, -distance / np.where(along < 0, along, -1), np.inf)
        normal = np.where((t < z)[..., None], direction / length, normal)
        z = np.minimum(t, z)
    centre, radius = np.array([0.25, -0.1, -3.0]), 0.5
    a, b, c = (ray**2).sum(-1), ray @ centre, centre @ centre - radius**2
    root = b**2 - a * c
    t = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    ball = (np.where(np.isfinite(t), t, 1.0)[..., None] * ray - centre) / radius
    normal, z = np.where((t < z)[..., None], ball, normal), np.minimum(t, z)

    def unit(values: np.ndarray) -> np.ndarray:
        return (values - values.min()) / (values.max() - values.min())

    return Scene(z, normal, z[..., None] * ray, {"depth": unit(z), "disparity": unit(1 / z)})
