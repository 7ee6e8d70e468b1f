"""The solids of the procedural scenes: meshes in their own frame (z up, about one unit tall) with shading normals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

# Faces whose normals differ by less than this share a smooth normal; the edges of boxes stay sharp.
SMOOTH_ANGLE_DEGREES = 35.0
UPRIGHT = (0.0, -180.0, 180.0)


@dataclass(frozen=True)
class Part:
    """Faces start .. stop - 1 of a mesh, and how they look.

    albedo: diffuse reflectance, linear RGB in [0, 1], (3,) or (3 (stop - start), 3) by corner; texture: uint8 (H, W, 3)
    sRGB, by which albedo (3,) is multiplied; texcoords: (3 (stop - start), 2) by corner, (0, 0) = the texture's lower left
    corner, repeated outside [0, 1].
    """

    start: int
    stop: int
    albedo: np.ndarray
    texture: np.ndarray | None = None
    texcoords: np.ndarray | None = None


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in which every corner of a face has its own vertex.

    vertices: (3F, 3) float64; faces: (F, 3) int64 into them; normals: (3F, 3) unit, pointing outwards.
    two_sided: it need not be closed, normals may point either way, and both sides of a face are seen.
    parts: surfaces of its own, one after the other; () = it has its object's material all over.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    two_sided: bool = False
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Category:
    """A kind of object and the poses in which it rests on the floor.

    poses: (rotation about the x axis, lowest and highest rotation about the vertical after it), degrees, one drawn per
    object; yaw 0 turns the -y side to the camera. Poses in which a shape looks like another one are left out (a lying
    cylinder seen on its end is a disc). elevations: lowest and highest pitch of the camera on it, degrees.
    proportion_jitter: largest relative change of each axis.
    """

    build: Callable[[int], tuple[np.ndarray, np.ndarray]]
    poses: tuple[tuple[float, float, float], ...] = (UPRIGHT,)
    elevations: tuple[float, float] = (12.0, 32.0)
    proportion_jitter: float = 0.1


def _trimesh_arrays(mesh) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)


def _sphere(sections: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    return _trimesh_arrays(trimesh.creation.icosphere(subdivisions=4 if sections > 32 else 2, radius=0.5))


def _boxes(*boxes: tuple[tuple[float, float, float], tuple[float, float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Union of axis-aligned boxes, each (extents, centre); faces inside another box are never seen."""
    import trimesh

    vertices, faces, offset = [], [], 0
    for extents, centre in boxes:
        box_vertices, box_faces = _trimesh_arrays(trimesh.creation.box(extents=extents))
        vertices.append(box_vertices + np.asarray(centre))
        faces.append(box_faces + offset)
        offset += len(box_vertices)
    return np.concatenate(vertices), np.concatenate(faces)


def _box(sections: int) -> tuple[np.ndarray, np.ndarray]:
    return _boxes(((0.9, 0.9, 0.9), (0.0, 0.0, 0.0)))


def _cross(sections: int) -> tuple[np.ndarray, np.ndarray]:
    return _boxes(((0.34, 0.34, 1.1), (0.0, 0.0, 0.0)), ((1.1, 0.34, 0.34), (0.0, 0.0, 0.0)))


def _arch(sections: int) -> tuple[np.ndarray, np.ndarray]:
    return _boxes(
        ((0.3, 0.4, 0.68), (-0.4, 0.0, 0.34)), ((0.3, 0.4, 0.68), (0.4, 0.0, 0.34)), ((1.1, 0.4, 0.3), (0.0, 0.0, 0.83))
    )


def _cylinder(sections: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    return _trimesh_arrays(trimesh.creation.cylinder(radius=0.42, height=0.9, sections=sections))


def _cone(sections: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    return _trimesh_arrays(trimesh.creation.cone(radius=0.46, height=1.2, sections=sections))


def _capsule(sections: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    return _trimesh_arrays(trimesh.creation.capsule(radius=0.29, height=0.8, count=[sections // 2, sections]))


def _torus(sections: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    mesh = trimesh.creation.torus(0.42, 0.15, major_sections=sections, minor_sections=sections // 2)
    return _trimesh_arrays(mesh)


def _pyramid(sections: int) -> tuple[np.ndarray, np.ndarray]:
    half = 0.55
    corners = [(-half, -half, 0), (half, -half, 0), (half, half, 0), (-half, half, 0), (0, 0, 0.95)]
    faces = [(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4), (0, 2, 1), (0, 3, 2)]
    return np.asarray(corners, dtype=np.float64), np.asarray(faces, dtype=np.int64)


def _hourglass(sections: int) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    profile = np.array([(0.0, 0.0), (0.45, 0.0), (0.12, 0.55), (0.45, 1.1), (0.0, 1.1)])  # (radius, height)
    return _trimesh_arrays(trimesh.creation.revolve(profile, sections=sections))


CATEGORIES: dict[str, Category] = {
    "sphere": Category(_sphere, proportion_jitter=0.0),
    "box": Category(_box),
    "cylinder": Category(_cylinder, poses=(UPRIGHT, UPRIGHT, (90.0, 35.0, 75.0), (90.0, -75.0, -35.0))),
    "cone": Category(_cone),
    "capsule": Category(_capsule, poses=(UPRIGHT, (90.0, 35.0, 145.0))),
    "torus": Category(_torus, poses=(UPRIGHT, (70.0, -45.0, 45.0), (90.0, -45.0, 45.0)), elevations=(21.0, 34.0)),
    "pyramid": Category(_pyramid),
    "cross": Category(_cross, poses=((0.0, -45.0, 45.0),)),
    "arch": Category(_arch, poses=((0.0, -45.0, 45.0),)),
    "hourglass": Category(_hourglass),
}


def _corner_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals of the corners of each face, (F, 3, 3): area-weighted over the faces around a vertex that bend little."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area_normals = np.cross(b - a, c - a)  # (F, 3)
    unit_normals = area_normals / np.linalg.norm(area_normals, axis=1, keepdims=True)
    around: dict[int, list[int]] = {}
    for face, corners in enumerate(faces):
        for vertex in corners:
            around.setdefault(int(vertex), []).append(face)
    smooth = math.cos(math.radians(SMOOTH_ANGLE_DEGREES))
    normals = np.empty((len(faces), 3, 3))
    for face, corners in enumerate(faces):
        for k, vertex in enumerate(corners):
            neighbours = around[int(vertex)]
            near = unit_normals[neighbours] @ unit_normals[face] > smooth
            normals[face, k] = area_normals[neighbours][near].sum(axis=0)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


@cache
def category_mesh(name: str, sections: int = 64) -> Mesh:
    """The mesh of a category; `sections` is the number of segments around round shapes."""
    vertices, faces = CATEGORIES[name].build(sections)
    # Weld equal vertices of each part, so that smoothing sees across seams; slivers at poles have no normal and go.
    rounded, inverse = np.unique(np.round(vertices, 9), axis=0, return_inverse=True)
    vertices, faces = rounded, inverse.reshape(-1)[faces]
    doubled_area = np.linalg.norm(
        np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]), axis=1
    )
    faces = faces[doubled_area > 1e-9]
    if name == "sphere":
        corner_normals = vertices[faces] / np.linalg.norm(vertices[faces], axis=-1, keepdims=True)
    else:
        corner_normals = _corner_normals(vertices, faces)
    return Mesh(
        vertices=vertices[faces].reshape(-1, 3),
        faces=np.arange(3 * len(faces)).reshape(-1, 3),
        normals=corner_normals.reshape(-1, 3),
    )


def place_mesh(mesh: Mesh, scale: np.ndarray, tilt_degrees: float, yaw_degrees: float, position: np.ndarray) -> Mesh:
    """Scale (3,), tilt about x, turn about z, and set the lowest point on the floor at `position` (2,), in metres."""
    tilt, yaw = math.radians(tilt_degrees), math.radians(yaw_degrees)
    about_x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    about_z = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    rotation = about_z @ about_x
    vertices = (mesh.vertices * scale) @ rotation.T
    normals = (mesh.normals / scale) @ rotation.T
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    vertices[:, :2] += position - (vertices[:, :2].min(axis=0) + vertices[:, :2].max(axis=0)) / 2
    vertices[:, 2] -= vertices[:, 2].min()
    return Mesh(vertices, mesh.faces, normals)
