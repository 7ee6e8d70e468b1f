"""A mesh of the user's as an object of scenes: its normals, its outline, what is said about it, and where it stands."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmdit.colours import colour_name, decode_srgb, encode_srgb
from mmdit.errors import UserError
from mmdit.sources.scenes.assets.declared import BadMesh
from mmdit.sources.scenes.assets.reading import RawMesh, Units, read_mesh
from mmdit.sources.scenes.layout import PlacedObject
from mmdit.sources.scenes.shapes import SMOOTH_ANGLE_DEGREES, Mesh, Part

WELD = 2.0**-20  # of the longest side: corners nearer than this are one
MAX_AROUND = 256  # faces around a corner that are looked at for its normal
NUM_SAMPLES = 4096  # points of the surface at which its colour is looked at
SAME_COLOUR = 0.85  # share of them that must have one name
# A hue is named where it is as strong as those of the solids are, HSV of sRGB: brown is not orange.
MIN_SATURATION, MIN_VALUE = 0.45, 0.55
BRIGHT = {"orange": 0.85, "yellow": 0.75}  # below they are brown and olive, which have no name
MIN_WHITE, MAX_BLACK = 0.9, 0.15
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class AssetMesh:
    """mesh: for pictures; coarse: the same faces without normals, for outlines."""

    mesh: Mesh
    coarse: Mesh

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about."""
        arrays = [self.mesh.vertices, self.mesh.normals, self.mesh.faces, self.coarse.vertices, self.coarse.faces]
        textures = {id(part.texture): part.texture for part in self.mesh.parts}
        arrays += [array for part in self.mesh.parts for array in (part.albedo, part.texcoords) if array is not None]
        return sum(array.nbytes for array in [*arrays, *(t for t in textures.values() if t is not None)])


@dataclass(frozen=True)
class Asset:
    """What is known of a mesh without having it in memory.

    root, path: where it is; category: what it shows; digest: of its files' bytes; extents: metres along x, y and z, as it
    stands; albedo: mean linear colour; colour: its name where nearly all of it has one, else "";
    has_colour: False = the file has none, each scene draws one.
    """

    root: str
    path: str
    category: str
    units: Units
    digest: str
    extents: tuple[float, float, float]
    albedo: tuple[float, float, float]
    colour: str
    has_colour: bool

    @property
    def size(self) -> float:
        """Longest side, metres."""
        return max(self.extents)

    @property
    def elevations(self) -> tuple[float, float]:
        """Lowest and highest pitch of the camera on it, degrees: flat things are looked down on."""
        flat = self.extents[2] < 0.25 * max(self.extents[:2])
        return (25.0, 45.0) if flat else (12.0, 32.0)

    def load(self) -> AssetMesh:
        """Return the mesh, from memory if it is there. Raises UserError where a file has changed."""
        return _CACHE.get(f"{self.digest} {self.units} {self.path}", self._read)

    def _read(self) -> AssetMesh:
        try:
            raw = read_mesh(Path(self.root), self.path, self.units)
        except BadMesh as error:
            raise UserError(f"{Path(self.root) / self.path}: {error}") from None
        if raw.digest != self.digest:
            raise UserError(f"{Path(self.root) / self.path}: has changed since the rendering began: start it again")
        return build_mesh(raw)


@dataclass(frozen=True)
class PlacedAsset(PlacedObject):
    """An asset that stands upright on the floor at its real size; ``material`` is all over it where it has no colours."""

    asset: Asset

    @property
    def size(self) -> float:
        return self.asset.size

    @property
    def colour(self) -> str:
        return self.asset.colour if self.asset.has_colour else super().colour

    def mesh(self, sections: int = 64) -> Mesh:
        loaded = self.asset.load()
        return stand(loaded.mesh if sections > 32 else loaded.coarse, self.yaw_degrees, self.position)


def stand(mesh: Mesh, yaw_degrees: float, position: tuple[float, float]) -> Mesh:
    """Turn a mesh about the vertical and set its lowest point on the floor, its middle at ``position``, metres."""
    yaw = math.radians(yaw_degrees)
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    vertices = mesh.vertices @ turn.T
    lowest, highest = vertices.min(axis=0), vertices.max(axis=0)
    shift = np.array([*(np.asarray(position) - (lowest + highest)[:2] / 2), -lowest[2]])
    return replace(mesh, vertices=vertices + shift, normals=mesh.normals @ turn.T)


def describe(root: Path, path: str, category: str, units: Units) -> tuple[Asset, RawMesh]:
    """Read a mesh and say what it is. Raises BadMesh if it can't be used."""
    raw = read_mesh(root, path, units)
    has_colour = bool(raw.parts)
    samples = sample_colours(raw) if has_colour else np.full((1, 3), 0.4)
    extents = np.ptp(raw.triangles.reshape(-1, 3), axis=0)
    asset = Asset(
        root=str(root),
        path=path,
        category=category,
        units=units,
        digest=raw.digest,
        extents=tuple(float(side) for side in extents),  # type: ignore[arg-type]
        albedo=tuple(float(c) for c in samples.mean(axis=0)),  # type: ignore[arg-type]
        colour=name_of(samples) if has_colour else "",
        has_colour=has_colour,
    )
    return asset, raw


def build_mesh(raw: RawMesh) -> AssetMesh:
    """Weld corners, for the outline, and give every corner of a face its normal, for pictures."""
    corners = raw.triangles.reshape(-1, 3)
    cells = np.round((corners - corners.min(axis=0)) / (np.ptp(corners, axis=0).max() * WELD)).astype(np.int64)
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    welded = inverse.reshape(-1, 3)
    normals = corner_normals(raw.triangles, welded)
    vertices = corners[first]
    coarse = Mesh(vertices, welded, np.zeros_like(vertices), two_sided=True)
    faces = np.arange(len(corners)).reshape(-1, 3)
    return AssetMesh(Mesh(corners, faces, normals, two_sided=True, parts=raw.parts), coarse)


def corner_normals(triangles: np.ndarray, welded: np.ndarray) -> np.ndarray:
    """Normals of the corners, (3F, 3): area-weighted over the faces around a corner that bend little.

    Faces may turn either way: neighbours are turned to the face's side first.

    Args:
        triangles: (F, 3, 3).
        welded: (F, 3), equal where corners are the same point.
    """
    area_normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])  # (F, 3)
    unit = area_normals / np.linalg.norm(area_normals, axis=1, keepdims=True)
    points = welded.ravel()
    order = np.argsort(points, kind="stable")  # corners by point
    starts = np.searchsorted(points[order], points)
    counts = np.bincount(points)[points]
    smooth = math.cos(math.radians(SMOOTH_ANGLE_DEGREES))
    face_of = np.arange(len(points)) // 3
    total = np.zeros((len(points), 3))
    for k in range(min(int(counts.max()), MAX_AROUND)):
        corner = np.nonzero(counts > k)[0]
        other = face_of[order[starts[corner] + k]]
        cosine = (unit[face_of[corner]] * unit[other]).sum(axis=1)
        weight = np.where(np.abs(cosine) > smooth, np.sign(cosine), 0.0)
        total[corner] += weight[:, None] * area_normals[other]
    length = np.linalg.norm(total, axis=1, keepdims=True)
    # A corner whose own face was not among those looked at may have none.
    return np.where(length > 0, total / np.where(length > 0, length, 1), unit[face_of])


def sample_colours(raw: RawMesh, count: int = NUM_SAMPLES) -> np.ndarray:
    """Linear colours (count, 3) at points spread over the surface, the same ones each time."""
    rng = np.random.default_rng(0)
    edges = raw.triangles[:, 1:] - raw.triangles[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    faces = np.searchsorted(np.cumsum(area), (np.arange(count) + rng.random(count)) / count * area.sum())
    faces = np.minimum(faces, len(area) - 1)
    first, second = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - first, first * (1 - second), first * second], axis=1)  # even over a triangle
    colours = np.empty((count, 3))
    for part in raw.parts:
        chosen = (faces >= part.start) & (faces < part.stop)
        colours[chosen] = _part_colours(part, faces[chosen] - part.start, weights[chosen])
    return colours


def _part_colours(part: Part, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if part.albedo.ndim > 1:
        return (part.albedo.reshape(-1, 3, 3)[faces] * weights[..., None]).sum(axis=1)
    if part.texture is None or part.texcoords is None:
        return np.broadcast_to(part.albedo, (len(faces), 3))
    uv = (part.texcoords.reshape(-1, 3, 2)[faces] * weights[..., None]).sum(axis=1)
    height, width = part.texture.shape[:2]
    column = np.floor((uv[:, 0] % 1) * width).astype(int) % width
    row = np.floor(((1 - uv[:, 1]) % 1) * height).astype(int) % height
    return decode_srgb(part.texture[row, column] / 255.0) * part.albedo


def name_of(samples: np.ndarray) -> str:
    """The colour that nearly all of a surface has, from linear samples (N, 3); "" where it has several, or a dull one."""
    encoded = encode_srgb(samples)
    value, darkest = encoded.max(axis=1), encoded.min(axis=1)
    saturation = (value - darkest) / np.maximum(value, 1e-9)
    names = np.array([colour_name(rgb) for rgb in encoded])
    least = np.array([BRIGHT.get(name, MIN_VALUE) for name in names])
    strong = (saturation >= MIN_SATURATION) & (value >= least)
    names[~strong & ~((names == "white") & (value >= MIN_WHITE)) & ~((names == "black") & (value <= MAX_BLACK))] = ""
    found, counts = np.unique(names, return_counts=True)
    most = int(counts.argmax())
    return str(found[most]) if counts[most] >= SAME_COLOUR * len(samples) else ""


class _MeshCache:
    """Meshes that were used last, up to some memory, in each process."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._held: OrderedDict[str, AssetMesh] = OrderedDict()

    def get(self, key: str, read: Callable[[], AssetMesh]) -> AssetMesh:
        if key not in self._held:
            self._held[key] = read()
            self._bytes += self._held[key].num_bytes
            while self._bytes > self._limit and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].num_bytes
        self._held.move_to_end(key)
        return self._held[key]


_CACHE = _MeshCache(CACHE_BYTES)
