"""Hypersim's cameras: from its rays, distances, world normals and radiance to planar depth, camera normals and 8 bits.

Its ``depth_meters`` is the distance along each pixel's ray; here depth is along the optical axis. Its cameras look along
-z with x right and y up, so a normal in its camera frame is one in ours: x right, y up, z towards the viewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FIELD_OF_VIEW = math.pi / 3  # horizontal, of the scenes without tilt and shift


def camera_rays(height: int, width: int, ray_matrix: Sequence[Sequence[float]] | None = None) -> np.ndarray:
    """Return the rays through the pixels' centres, (H, W, 3), in the camera frame, of any length.

    Args:
        height, width: of the image.
        ray_matrix: M_cam_from_uv of metadata_camera_parameters.csv, where u goes from -1 (left) to 1 (right) and v from
            -1 (bottom) to 1 (top); None = a horizontal field of view of 60 degrees.
    """
    if ray_matrix is None:
        tangent = math.tan(FIELD_OF_VIEW / 2)
        ray_matrix = ((tangent, 0, 0), (0, tangent * height / width, 0), (0, 0, -1))
    u = (np.arange(width) + 0.5) / width * 2 - 1
    v = 1 - (np.arange(height) + 0.5) / height * 2
    uv1 = np.stack([*np.meshgrid(u, v), np.ones((height, width))], axis=-1)
    return uv1 @ np.asarray(ray_matrix, dtype=np.float64).T


def planar_depth(distance: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Distance to the camera's centre (H, W) -> depth along the optical axis (H, W), metres; not finite -> 0."""
    cosine = np.abs(rays[..., 2]) / np.linalg.norm(rays, axis=-1)
    return np.where(np.isfinite(distance), distance.astype(np.float64) * cosine, 0).astype(np.float32)


def camera_normals(normals: np.ndarray, rotation: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """World normals (H, W, 3) -> unit normals in the camera frame that face the camera; (0, 0, 0) where none is known.

    Args:
        normals: in the world; not finite or zero = none. A surface seen from behind has its normal turned round.
        rotation: 3 x 3, camera to world: its columns are the camera's axes.
        rays: (H, W, 3), ``camera_rays``.
    """
    found = np.where(np.isfinite(normals).all(axis=-1, keepdims=True), normals, 0).astype(np.float64) @ rotation
    found = np.where((found * rays).sum(axis=-1, keepdims=True) > 0, -found, found)
    length = np.linalg.norm(found, axis=-1, keepdims=True)
    return np.divide(found, length, out=np.zeros_like(found), where=length > 1e-3).astype(np.float32)


def tone_map(color: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Radiance (H, W, 3) -> uint8: the 90th percentile of brightness becomes 0.8 after the gamma, as Hypersim's previews.

    Args:
        color: linear radiance, of any scale; pixels that are not finite become black.
        valid: (H, W) bool, pixels of the scene: those whose brightness counts.
    """
    color = np.where(np.isfinite(color), color, 0).astype(np.float64)
    brightness = (color @ np.array([0.3, 0.59, 0.11]))[valid]
    level = np.percentile(brightness, 90) if brightness.size else 1.0
    scale = 0.8**2.2 / level if level >= 1e-4 else 0.0
    return np.round(np.clip(np.maximum(scale * color, 0) ** (1 / 2.2), 0, 1) * 255).astype(np.uint8)
