"""Scenes for prompts: the same subject again in other company, poses and light, and pairs in known relations.

A block is eight scenes of two subjects A and B of different categories and colours: each alone twice, the second time with
nothing else, and both together in the four relations. So every subject is met in six pictures, and every picture of one has
another that shows it alone. Pairs have partners with the same floor and wall, no picture of a subject alone does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mmdit.colours import colour_name, encode_srgb
from mmdit.sources.scenes.camera import SILHOUETTE_SIZE, frame, silhouette, visible_shares
from mmdit.sources.scenes.layout import (
    CATEGORY_NAMES,
    Layout,
    PlacedObject,
    add_distractor,
    draw_sun,
    footprint,
    scene_generator,
)
from mmdit.sources.scenes.material import Material, colour_distance, draw_background, draw_colour, draw_material
from mmdit.sources.scenes.shapes import CATEGORIES, Mesh

SCENES_PER_BLOCK = 8
# relation of A to B -> direction from B to A on the floor: x right, y away from the camera
RELATIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "front": (0.0, -1.0),
    "behind": (0.0, 1.0),
}
OPPOSITE = {"left": "right", "right": "left", "front": "behind", "behind": "front"}
MIN_VISIBLE = 0.5
# Sizes that differ by this factor are called small and large.
SIZE_RATIO = 1.4


@dataclass(frozen=True)
class Subject:
    """What stays of an object from scene to scene: category, proportions (factors per axis) and material."""

    number: int
    category: str
    proportions: tuple[float, float, float]
    material: Material

    @property
    def colour(self) -> str:
        return colour_name(encode_srgb(self.material.albedo))

    def place(self, rng: np.random.Generator, size: float) -> PlacedObject:
        """The subject at the origin in one of its category's poses."""
        poses = CATEGORIES[self.category].poses
        tilt, lowest, highest = poses[int(rng.integers(len(poses)))]
        scale = tuple(size * p for p in self.proportions)
        return PlacedObject(self.category, scale, tilt, float(rng.uniform(lowest, highest)), (0.0, 0.0), self.material)  # type: ignore[arg-type]


def block_subjects(seed: int, split: str, block: int, variety: bool = False) -> tuple[Subject, Subject]:
    """The two subjects of a block; first subjects of ten blocks have every category once."""
    rng = scene_generator(seed, split, 2, block)
    group, place = divmod(block, len(CATEGORY_NAMES))
    first = CATEGORY_NAMES[int(scene_generator(seed, split, 3, group).permutation(len(CATEGORY_NAMES))[place])]
    others = [name for name in CATEGORY_NAMES if name != first]
    one = _subject(rng, 2 * block, first, None, variety)
    return one, _subject(rng, 2 * block + 1, others[int(rng.integers(len(others)))], one, variety)


def _subject(rng: np.random.Generator, number: int, category: str, other: Subject | None, variety: bool) -> Subject:
    jitter = CATEGORIES[category].proportion_jitter
    proportions = tuple(float(1 + p) for p in rng.uniform(-jitter, jitter, 3))
    while True:
        albedo = draw_colour(rng, (0.45, 0.95), (0.6, 1.0))
        subject = Subject(number, category, proportions, draw_material(rng, albedo, variety))  # type: ignore[arg-type]
        if other is None:
            return subject
        if subject.colour != other.colour and colour_distance(albedo, other.material.albedo) > 0.38:
            return subject


def block_relations(seed: int, split: str, block: int) -> list[str]:
    """The order in which the four pairs of a block have the relations."""
    names = list(RELATIONS)
    return [names[int(i)] for i in scene_generator(seed, split, 4, block).permutation(len(names))]


def alone_scenes(subject: int) -> tuple[int, int]:
    """The two scenes in which subject number ``subject`` is alone; in the second one nothing else stands."""
    block, place = divmod(subject, 2)
    first = SCENES_PER_BLOCK * block + 2 * place
    return first, first + 1


def lone_subject(seed: int, split: str, index: int, variety: bool = False) -> Subject | None:
    """The subject that scene ``index`` shows alone; None for a pair."""
    block, place = divmod(index, SCENES_PER_BLOCK)
    return block_subjects(seed, split, block, variety)[place // 2] if place < 4 else None


def same_ground(index: int) -> int | None:
    """The other scene with the floor and wall of scene ``index``; None where there is none."""
    return index ^ 1 if index % SCENES_PER_BLOCK >= 4 else None


def sample_subject_layout(seed: int, split: str, index: int, variety: bool = False) -> Layout:
    """Draw scene ``index``; a function of the arguments alone, like ``sample_layout``."""
    block, place = divmod(index, SCENES_PER_BLOCK)
    one, other = block_subjects(seed, split, block, variety)
    rng = scene_generator(seed, split, 5, index)
    if place < 4:
        return _alone(rng, (one, other)[place // 2], has_company=place % 2 == 0, variety=variety)
    pair = (one, other) if place % 2 == 0 else (other, one)
    ground = _draw_ground(scene_generator(seed, split, 7, index // 2), [one.material, other.material], variety)
    return _together(rng, pair, block_relations(seed, split, block)[place - 4], ground)


def _alone(rng: np.random.Generator, subject: Subject, has_company: bool, variety: bool) -> Layout:
    main = subject.place(rng, rng.uniform(0.8, 1.2))
    layout = _surroundings(rng, (main,), _draw_ground(rng, [subject.material], variety))
    if has_company and rng.random() < 0.6:
        others = [name for name in CATEGORY_NAMES if name != subject.category]
        palette = [layout.floor.albedo, layout.wall.albedo, main.material.albedo]
        layout = add_distractor(rng, layout, others, palette, variety)
    return replace(layout, subjects=(subject.number,))


def _together(
    rng: np.random.Generator, pair: tuple[Subject, Subject], relation: str, ground: tuple[Material, Material]
) -> Layout:
    """Both subjects, the first one in ``relation`` to the second; tried until both can be seen well."""
    best: tuple[float, Layout] | None = None
    for _ in range(60):
        sizes = rng.uniform(0.85, 1.0, 2)
        if rng.random() < 0.4:  # one small, one large
            sizes[int(rng.integers(2))] *= 0.6
        objects = tuple(subject.place(rng, size) for subject, size in zip(pair, sizes, strict=True))
        layout = _surroundings(rng, _apart(rng, objects, relation), ground)  # type: ignore[arg-type]
        seen = _least_visible(layout, relation)
        if best is None or seen > best[0]:
            best = (seen, layout)
        if seen >= MIN_VISIBLE:
            break
    assert best is not None
    return replace(best[1], relation=relation, subjects=tuple(subject.number for subject in pair))


def _apart(
    rng: np.random.Generator, objects: tuple[PlacedObject, PlacedObject], relation: str
) -> tuple[PlacedObject, ...]:
    """Set the first object beside the second along the relation's axis, a little off it, and centre both."""
    sideways = RELATIONS[relation][1] == 0
    radii = [footprint(placed.mesh(sections=16))[1] for placed in objects]
    distance = sum(radii) + rng.uniform(0.05, 0.4 if sideways else 0.9)
    turn = math.radians(rng.uniform(-22, 22) if sideways else rng.uniform(-38, 38))
    x, y = RELATIONS[relation]
    direction = np.array([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)])
    first, second = direction * distance / 2, -direction * distance / 2
    return tuple(
        replace(placed, position=(float(position[0]), float(position[1])))
        for placed, position in zip(objects, (first, second), strict=True)
    )


def _draw_ground(rng: np.random.Generator, objects: list[Material], variety: bool) -> tuple[Material, Material]:
    """Floor and wall against which the objects stand out."""
    while True:
        ground = draw_background(rng, variety)
        if min(colour_distance(one.albedo, other.albedo) for one in objects for other in ground) > 0.38:
            return ground


def _surroundings(
    rng: np.random.Generator, objects: tuple[PlacedObject, ...], ground: tuple[Material, Material]
) -> Layout:
    """Camera and light around objects."""
    floor, wall = ground
    meshes = [placed.mesh(sections=16) for placed in objects]
    whole = Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, _offsets(meshes), strict=True)]),
        np.concatenate([mesh.normals for mesh in meshes]),
    )
    ranges = [CATEGORIES[placed.category].elevations for placed in objects]
    elevations = (max(low for low, _ in ranges), min(high for _, high in ranges))
    turn = math.radians(rng.uniform(-30, 30))
    reach = np.linalg.norm(whole.vertices[:, :2], axis=1).max()
    return Layout(
        objects=objects,
        camera=frame(rng, whole, elevations),
        wall_normal=(math.sin(turn), -math.cos(turn), 0.0),
        wall_distance=reach + rng.uniform(0.4, 1.9),
        floor=floor,
        wall=wall,
        sun_direction=draw_sun(rng),
        sun_strength=rng.uniform(0.85, 1.1),
    )


def _offsets(meshes: list[Mesh]) -> list[int]:
    return np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])[:-1].tolist()


def _least_visible(layout: Layout, relation: str) -> float:
    """Share of the worse hidden object that can be seen; 0 where the picture does not show the relation."""
    meshes = [placed.mesh(sections=16) for placed in layout.objects]
    masks = [silhouette(mesh, layout.camera) for mesh in meshes]
    if min(mask.mean() for mask in masks) < 0.02:
        return 0.0
    if RELATIONS[relation][1] == 0:
        columns = [float(np.nonzero(mask)[1].mean()) for mask in masks]
        if (columns[0] - columns[1]) * RELATIONS[relation][0] < 0.15 * SILHOUETTE_SIZE:
            return 0.0
    return min(visible_shares([footprint(mesh) for mesh in meshes], masks, layout.camera))
