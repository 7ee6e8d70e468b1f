"""One mesh file -> triangles in metres, z up, with the colours that the file gives them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import trimesh
from PIL import Image

from mmdit.colours import decode_srgb
from mmdit.errors import first_line
from mmdit.sources.scenes.assets.declared import MAX_FACES, MAX_VALUES, BadMesh, check_declared, too_many
from mmdit.sources.scenes.assets.references import IMAGE_FORMATS, MAX_BYTES, References, load_scene
from mmdit.sources.scenes.shapes import Part

Unit = Literal["m", "cm", "mm", "inch"]
Up = Literal["y", "z"]
METRES: dict[str, float] = {"m": 1.0, "cm": 0.01, "mm": 0.001, "inch": 0.0254}
UP: dict[str, Up] = {".obj": "y", ".ply": "z", ".stl": "z"}  # what their exporters mostly write
GLTF = (".glb", ".gltf")  # metres and y up, by its specification
SMALLEST, LARGEST = 0.01, 30.0  # metres of the longest side
MAX_TEXTURE = 1024  # texels along a side; larger ones are reduced
MAX_TEXELS = 2**26  # of a texture as it lies on disk
GREY = np.array([0.4, 0.4, 0.4])  # of a surface without a colour beside others that have one


@dataclass(frozen=True)
class Units:
    """What the numbers of OBJ, PLY and STL mean; glTF says it itself. up: None = y in OBJ, z in PLY and STL."""

    unit: Unit = "m"
    up: Up | None = None

    def to_world(self, suffix: str) -> np.ndarray:
        """(3, 3): coordinates of the file -> metres, z up, the front to -y."""
        unit, up = ("m", "y") if suffix in GLTF else (self.unit, self.up or UP[suffix])
        turn = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]) if up == "y" else np.eye(3)
        return METRES[unit] * turn


@dataclass(frozen=True)
class RawMesh:
    """triangles: (F, 3, 3), metres, z up; parts cover all of them in order, () = the file has no colour.

    digest: of all bytes that were read; files: sha256 by path below the folder; notes: what was left out.
    """

    triangles: np.ndarray
    parts: tuple[Part, ...]
    digest: str
    files: dict[str, str]
    notes: tuple[str, ...]


def read_mesh(root: Path, path: str, units: Units) -> RawMesh:
    """Read ``path`` below the folder ``root``. Raises BadMesh if it can't be used."""
    file = root / path
    suffix = file.suffix.lower()
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise BadMesh(f"has {size} bytes, at most {MAX_BYTES} are read: simplify it")
        content = file.read_bytes()
    except OSError as error:
        raise BadMesh(f"can't be read: {error.strerror or error}") from None
    check_declared(content, suffix)
    references = References(root, file.parent)
    try:
        scene = load_scene(content, suffix[1:], references)
        pieces = list(_pieces(scene, is_linear=suffix in GLTF))
    except Exception as error:  # whatever the readers raise
        reasons = references.refused or references.notes or [f"can't be read: {first_line(error)}"]
        raise BadMesh(reasons[0]) from None
    if references.refused:  # trimesh goes on without a material
        raise BadMesh(references.refused[0])
    if not pieces:
        raise BadMesh("has no faces: a mesh of triangles or polygons is needed")
    files = {path: hashlib.sha256(content).hexdigest()} | references.files
    triangles, parts, has_colour = [], [], False
    count = 0
    for corners, surface in pieces:
        keep = _has_area(corners)
        part = surface.part(count, keep)
        has_colour |= surface.has_colour
        if part.stop > part.start:
            triangles.append(corners[keep])
            parts.append(part)
            count = part.stop
    if not triangles:
        raise BadMesh("has no face with an area")
    world = np.concatenate(triangles) @ units.to_world(suffix).T
    longest = float(np.ptp(world.reshape(-1, 3), axis=0).max())
    if not SMALLEST <= longest <= LARGEST:
        advice = "scale it, glTF is in metres" if suffix in GLTF else "say with --assets_unit what its numbers are"
        raise BadMesh(f"its longest side is {longest:.4g} m, from {SMALLEST} to {LARGEST:.0f} are taken: {advice}")
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    return RawMesh(world, tuple(parts) if has_colour else (), digest, files, tuple(references.notes))


@dataclass(frozen=True)
class _Surface:
    """How one piece looks, before faces are left out. albedo: linear, (3,) or (F, 3, 3) by corner; texcoords: (F, 3, 2)."""

    has_colour: bool
    albedo: np.ndarray
    texture: np.ndarray | None = None
    texcoords: np.ndarray | None = None

    def part(self, start: int, keep: np.ndarray) -> Part:
        albedo = self.albedo[keep].reshape(-1, 3) if self.albedo.ndim > 1 else self.albedo
        texcoords = None if self.texcoords is None else self.texcoords[keep].reshape(-1, 2)
        return Part(start, start + int(keep.sum()), albedo, self.texture, texcoords)


def _pieces(scene: trimesh.Scene, is_linear: bool) -> Iterator[tuple[np.ndarray, _Surface]]:
    """Yield each mesh of the scene where it stands: corners (F, 3, 3) in the file's coordinates, and its surface.

    is_linear: colours of corners are linear, as glTF's are, else sRGB.
    """
    total, textures = 0, {}  # type: int, dict[int, np.ndarray]
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        mesh = scene.geometry[name]
        if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
            continue
        total += len(mesh.faces)
        if total > MAX_FACES:
            raise too_many(total)
        faces = np.asarray(mesh.faces)
        vertices = np.asarray(mesh.vertices, dtype=np.float64)
        if len(vertices) > MAX_VALUES or faces.min() < 0 or faces.max() >= len(vertices):
            raise BadMesh("has a face with a corner that is not there")
        vertices = trimesh.transform_points(vertices, np.asarray(transform))
        corners = vertices[faces]
        if not np.isfinite(corners).all():
            raise BadMesh("has corners that are not finite numbers")
        yield corners, _surface(mesh, faces, textures, is_linear)


def _surface(mesh: trimesh.Trimesh, faces: np.ndarray, textures: dict[int, np.ndarray], is_linear: bool) -> _Surface:
    visual = mesh.visual
    decode = np.asarray if is_linear else decode_srgb
    if visual.kind == "vertex":
        return _Surface(True, decode(np.asarray(visual.vertex_colors)[:, :3] / 255.0)[faces])
    if visual.kind == "face":
        return _Surface(True, np.repeat(decode(np.asarray(visual.face_colors)[:, None, :3] / 255.0), 3, axis=1))
    if visual.kind != "texture":
        return _Surface(False, GREY)
    material = visual.material
    is_pbr = isinstance(material, trimesh.visual.material.PBRMaterial)
    image = material.baseColorTexture if is_pbr else getattr(material, "image", None)
    if is_pbr:
        factor = material.baseColorFactor
        albedo = np.ones(3) if factor is None else np.asarray(factor[:3]) / 255.0  # linear, by glTF's specification
    else:
        albedo = decode_srgb(np.asarray(material.diffuse[:3]) / 255.0)
    uv = None if visual.uv is None else np.asarray(visual.uv, dtype=np.float64)
    if image is None or uv is None or len(uv) != len(mesh.vertices) or not np.isfinite(uv).all():
        # trimesh makes up a material where the file has texture coordinates and no material.
        return _Surface(is_pbr or bool(material.name) or image is not None, albedo)
    if id(image) not in textures:
        textures[id(image)] = _texels(image)
    # Exporters leave the colour beside an OBJ's texture black or grey, and mean the texture.
    albedo = albedo if is_pbr else np.ones(3)
    return _Surface(True, albedo, textures[id(image)], uv[faces])


def _texels(image: Image.Image) -> np.ndarray:
    """Pixels of a texture, uint8 (H, W, 3) sRGB, at most ``MAX_TEXTURE`` along a side. Transparency is left out."""
    width, height = image.size
    if image.format is not None and image.format not in IMAGE_FORMATS:
        raise BadMesh(f"has a texture of the format {image.format}: {', '.join(IMAGE_FORMATS)} are read")
    if width * height > MAX_TEXELS:
        raise BadMesh(f"has a texture of {width} x {height}, at most {MAX_TEXELS} pixels are read: reduce it")
    factor = math.ceil(max(width, height) / MAX_TEXTURE)
    picture = image.convert("RGB")
    return np.asarray(picture.reduce(factor) if factor > 1 else picture)


def _has_area(corners: np.ndarray) -> np.ndarray:
    """Boolean (F,): faces that are more than a line, measured by the mesh's own size."""
    doubled = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    size = float(np.ptp(corners.reshape(-1, 3), axis=0).max())
    return doubled > 1e-12 * size**2
