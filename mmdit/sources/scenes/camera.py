"""The camera of a scene, how it is aimed, and what it sees of a mesh.

World frame: z up, the floor is z = 0, metres. The camera looks along +y and down, never rolled, so the camera frame is
x right = world x, y up, z towards the viewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mmdit.sources.scenes.shapes import Mesh

SILHOUETTE_SIZE = 64  # resolution at which the layout looks at itself, whatever the size of the images


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at `eye` (metres), pitched down by `elevation` degrees; `fov` is the full angle in degrees."""

    eye: tuple[float, float, float]
    elevation: float
    fov: float

    @property
    def world_to_camera(self) -> np.ndarray:
        """(3, 3), rows: right, up, towards the viewer."""
        sine, cosine = math.sin(math.radians(self.elevation)), math.cos(math.radians(self.elevation))
        return np.array([[1.0, 0.0, 0.0], [0.0, sine, cosine], [0.0, -cosine, sine]])

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (N, 3) -> (x right, y up) in [-1, 1] across the image (N, 2), and their depth (N,) in metres."""
        local = (points - np.asarray(self.eye)) @ self.world_to_camera.T
        depth = -local[:, 2]
        return local[:, :2] / (depth * math.tan(math.radians(self.fov) / 2))[:, None], depth


def aim(centre: np.ndarray, distance: float, elevation: float, fov: float) -> Camera:
    """A camera that has ``centre`` (3,) in its middle, ``distance`` metres away, pitched down by ``elevation`` degrees."""
    angle = math.radians(elevation)
    eye = centre + distance * np.array([0.0, -math.cos(angle), math.sin(angle)])
    return Camera((float(eye[0]), float(eye[1]), float(eye[2])), float(elevation), float(fov))


def frame(rng: np.random.Generator, mesh: Mesh, elevations: tuple[float, float], unit: float = 1.0) -> Camera:
    """A camera that shows the whole mesh, ``unit`` metres large, near the middle, over a drawn share of the image."""
    fov, elevation = rng.uniform(32, 48), rng.uniform(*elevations)
    target_cover, target_extent = rng.uniform(0.17, 0.33), rng.uniform(0.72, 0.86)
    shift = rng.uniform(-1, 1, 2)
    centre = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    distance = 3.0 * unit
    for _ in range(5):
        camera = aim(centre, distance, elevation, fov)
        plane, _ = camera.project(mesh.vertices)
        extent = (plane.max(axis=0) - plane.min(axis=0)).max() / 2
        covered = silhouette(mesh, camera).mean()
        distance *= max(math.sqrt(covered / target_cover), extent / target_extent)
        # Slide the aim so that the bounding box, not the projected centre, is at the wanted place.
        lowest, highest = plane.min(axis=0), plane.max(axis=0)
        slack = np.clip(0.92 - (highest - lowest) / 2, 0, 0.2)
        offset = ((lowest + highest) / 2 - shift * slack) * distance * math.tan(math.radians(fov) / 2)
        centre = centre + offset @ camera.world_to_camera[:2]
    return aim(centre, distance, elevation, fov)


def silhouette(mesh: Mesh, camera: Camera, size: int = SILHOUETTE_SIZE) -> np.ndarray:
    """Boolean (size, size): the pixels the mesh covers when nothing stands before it."""
    from PIL import Image, ImageDraw

    plane, _ = camera.project(mesh.vertices)
    pixels = (plane * (1, -1) + 1) * (size / 2) - 0.5
    image = Image.new("1", (size, size))
    draw = ImageDraw.Draw(image)
    triangles = pixels[mesh.faces]  # (F, 3, 2)
    if mesh.two_sided:
        # Of many small triangles the corners are enough; polygons are drawn one by one.
        small = (np.ptp(triangles, axis=1) < 1).all(axis=1)
        drawn, corners = triangles[~small], np.round(triangles[small].reshape(-1, 2)).astype(int)
    else:
        first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
        drawn = triangles[first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0]
        corners = np.empty((0, 2), dtype=int)
    for triangle in drawn.reshape(-1, 6).tolist():
        draw.polygon(triangle, fill=1)
    mask = np.array(image)
    corners = corners[((corners >= 0) & (corners < size)).all(axis=1)]
    mask[corners[:, 1], corners[:, 0]] = True
    return mask


def visible_shares(circles: list[tuple[np.ndarray, float]], masks: list[np.ndarray], camera: Camera) -> list[float]:
    """Share of each silhouette not hidden by nearer objects; objects stand apart, so the nearer centre is in front."""
    distances = [float(np.linalg.norm(centre - np.asarray(camera.eye)[:2])) for centre, _ in circles]
    shares = []
    for k, mask in enumerate(masks):
        hidden = np.zeros_like(mask)
        for j, other in enumerate(masks):
            if distances[j] < distances[k]:
                hidden |= other
        shares.append(1 - float((mask & hidden).sum() / max(1, mask.sum())))
    return shares
