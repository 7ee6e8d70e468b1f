"""What stands where in a procedural scene: a description in plain numbers, drawn from (seed, split, index) alone.

World frame: z up, the floor is z = 0, metres (``mmdit.sources.scenes.camera``). The wall is a vertical plane behind the objects.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np

from mmdit.colours import colour_name, encode_srgb
from mmdit.sources.scenes.camera import Camera, frame, silhouette, visible_shares
from mmdit.sources.scenes.environment import Environment
from mmdit.sources.scenes.material import Material, draw_background, draw_colour_unlike, draw_material
from mmdit.sources.scenes.shapes import CATEGORIES, Mesh, category_mesh, place_mesh

CATEGORY_NAMES: tuple[str, ...] = tuple(CATEGORIES)
MIN_VISIBLE_MAIN = 0.65
MIN_VISIBLE_DISTRACTOR = 0.3
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class PlacedObject:
    """A solid that stands on the floor."""

    category: str
    scale: Vector
    tilt_degrees: float
    yaw_degrees: float
    position: tuple[float, float]
    material: Material

    @property
    def size(self) -> float:
        """What "small" and "large" compare."""
        return max(self.scale)

    @property
    def colour(self) -> str:
        """The name of its colour; "" if it has none that words can tell."""
        return colour_name(encode_srgb(self.material.albedo))

    def mesh(self, sections: int = 64) -> Mesh:
        """The object's mesh in the world, metres; a coarse one for few ``sections``."""
        return place_mesh(
            category_mesh(self.category, sections),
            np.asarray(self.scale),
            self.tilt_degrees,
            self.yaw_degrees,
            np.asarray(self.position),
        )


@dataclass(frozen=True)
class Layout:
    """A scene: objects[0] is the main object.

    relation: where objects[0] stands as seen from objects[1], a name in ``subjects.RELATIONS``, if a caption names both;
    subjects: numbers that objects of the same look share in a split, () = each is met once.
    says_sizes: whether "small" and "large" mean something of these objects.
    environment: light from all around instead of the sun.

    The points p of the wall satisfy p . wall_normal = -wall_distance (metres), with wall_normal towards the camera;
    sun_direction is the unit vector towards the sun; sun_strength its factor on the usual brightness.
    """

    objects: tuple[PlacedObject, ...]
    camera: Camera
    wall_normal: Vector
    wall_distance: float
    floor: Material
    wall: Material
    sun_direction: Vector
    sun_strength: float
    relation: str | None = None
    subjects: tuple[int, ...] = ()
    says_sizes: bool = True
    environment: Environment | None = None

    @property
    def category(self) -> str:
        return self.objects[0].category


def scene_generator(seed: int, split: str, *stream: int) -> np.random.Generator:
    """Return the generator of a (seed, split, stream), the same on every machine and in every process."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(split.encode()), *stream]))


def category_of(seed: int, split: str, index: int) -> str:
    """Category of scene `index`: each block of scenes, as many as categories, is a permutation of the categories."""
    block, place = divmod(index, len(CATEGORY_NAMES))
    return CATEGORY_NAMES[int(scene_generator(seed, split, 0, block).permutation(len(CATEGORY_NAMES))[place])]


def sample_layout(
    seed: int, split: str, index: int, variety: bool = False, max_distractors: int | None = None
) -> Layout:
    """Draw scene `index`. max_distractors: None = 1, or 3 with variety. Independent of the image size."""
    if max_distractors is None:
        max_distractors = 3 if variety else 1
    rng = scene_generator(seed, split, 1, index)
    category = category_of(seed, split, index)
    floor, wall = draw_background(rng, variety)
    palette = [floor.albedo, wall.albedo]
    main = _object(rng, category, rng.uniform(0.8, 1.2), (0.0, 0.0), palette, variety)
    mesh = main.mesh(sections=16)
    camera = frame(rng, mesh, CATEGORIES[category].elevations)
    turn = math.radians(rng.uniform(-30, 30))
    reach = np.linalg.norm(mesh.vertices[:, :2], axis=1).max()
    layout = Layout(
        objects=(main,),
        camera=camera,
        wall_normal=(math.sin(turn), -math.cos(turn), 0.0),
        wall_distance=reach + rng.uniform(0.4, 1.9),
        floor=floor,
        wall=wall,
        sun_direction=draw_sun(rng),
        sun_strength=rng.uniform(0.85, 1.1),
    )
    count = int(rng.random() < 0.65) if max_distractors == 1 else int(rng.integers(0, max_distractors + 1))
    others = [name for name in CATEGORY_NAMES if name != category]
    for _ in range(min(count, max_distractors)):
        layout = add_distractor(rng, layout, others, palette, variety)
    return layout


def _object(
    rng: np.random.Generator,
    name: str,
    size: float,
    position: tuple[float, float],
    palette: list[Vector],
    variety: bool,
) -> PlacedObject:
    """An object of a colour unlike all of `palette`, to which its colour is added."""
    kind = CATEGORIES[name]
    jitter = 1 + rng.uniform(-kind.proportion_jitter, kind.proportion_jitter, 3)
    tilt, lowest_yaw, highest_yaw = kind.poses[int(rng.integers(len(kind.poses)))]
    yaw = rng.uniform(lowest_yaw, highest_yaw)
    albedo = draw_colour_unlike(rng, palette)
    palette.append(albedo)
    scale = tuple(float(s) for s in size * jitter)
    return PlacedObject(name, scale, tilt, float(yaw), position, draw_material(rng, albedo, variety))  # type: ignore[arg-type]


def draw_sun(rng: np.random.Generator) -> Vector:
    """From the left or the right and the viewer's side, so that neighbouring facets differ in brightness."""
    azimuth = math.radians(rng.uniform(20, 75)) * (1 if rng.random() < 0.5 else -1)
    elevation = math.radians(rng.uniform(32, 62))
    return (math.sin(azimuth) * math.cos(elevation), -math.cos(azimuth) * math.cos(elevation), math.sin(elevation))


def add_distractor(
    rng: np.random.Generator, layout: Layout, others: list[str], palette: list[Vector], variety: bool
) -> Layout:
    """Add an object that hides a part of the main one or is partly hidden; the scene unchanged if none fits."""
    extra = _object(rng, others[int(rng.integers(len(others)))], rng.uniform(0.55, 0.85), (0.0, 0.0), palette, variety)
    placed = place_beside(rng, layout, extra)
    if placed is None:
        palette.pop()
        return layout
    return placed


def place_beside(
    rng: np.random.Generator,
    layout: Layout,
    extra: PlacedObject,
    *,
    unit: float = 1.0,
    largest_share: float = 0.6,
    highest: float = math.inf,
    apart: float = 0.25,
) -> Layout | None:
    """Set ``extra`` beside the main object where both can be recognised; None where no place was found.

    unit: metres that count as one, about the main object's size; largest_share: of the main object's silhouette that the
    other's may have; highest: y of its top in the picture, where 1 is the upper edge;
    apart: how often a place is taken at which neither hides the other.
    """
    camera = layout.camera
    meshes = [placed.mesh(sections=16) for placed in layout.objects]
    masks = [silhouette(mesh, camera) for mesh in meshes]
    circles = [footprint(mesh) for mesh in meshes]
    footprint_radius = footprint(extra.mesh(sections=16))[1]
    for _ in range(40):
        angle, gap = rng.uniform(-math.pi, math.pi), rng.uniform(0.03, 0.6) * unit
        radius = circles[0][1] + footprint_radius + gap
        position = np.array([math.cos(angle), math.sin(angle)]) * radius
        clear_of_wall = (
            position @ np.asarray(layout.wall_normal)[:2] + layout.wall_distance > footprint_radius + 0.05 * unit
        )
        clear_of_objects = all(np.linalg.norm(position - c) > r + footprint_radius for c, r in circles)
        if not (clear_of_wall and clear_of_objects):
            continue
        candidate = replace(extra, position=(float(position[0]), float(position[1])))
        mesh = candidate.mesh(sections=16)
        plane, depth = camera.project(mesh.vertices)
        if depth.min() < 0.3 * unit or plane[:, 1].min() < -0.97 or plane[:, 1].max() > highest:
            continue
        mask = silhouette(mesh, camera)
        if mask.mean() < 0.025 or mask.sum() > largest_share * masks[0].sum():
            continue
        seen = visible_shares([*circles, (position, footprint_radius)], [*masks, mask], camera)
        overlaps = bool((mask & masks[0]).sum() > 0.04 * mask.sum())
        inside = np.abs(plane[:, 0]).max() < 1.25
        recognisable = seen[0] >= MIN_VISIBLE_MAIN and min(seen[1:]) >= MIN_VISIBLE_DISTRACTOR
        if recognisable and inside and (overlaps or rng.random() < apart):
            return replace(layout, objects=(*layout.objects, candidate))
    return None


def footprint(mesh: Mesh) -> tuple[np.ndarray, float]:
    """Centre (2,) and radius of a circle on the floor that holds the whole mesh."""
    corners = mesh.vertices[:, :2]
    centre = (corners.min(axis=0) + corners.max(axis=0)) / 2
    return centre, float(np.linalg.norm(corners - centre, axis=1).max())
