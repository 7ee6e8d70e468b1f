"""What stands where in a scene of the user's meshes: a function of (seed, split, index) and the meshes.

Everything keeps its real size. What surrounds the main object, how far the wall is and how coarse the pattern of the floor, is
drawn in units of the main object's longest side, so that a cup's scene looks like a cupboard's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmdit.sources.scenes.assets.asset import Asset, PlacedAsset
from mmdit.sources.scenes.camera import frame
from mmdit.sources.scenes.environment import Environment
from mmdit.sources.scenes.layout import Layout, PlacedObject, Vector, draw_sun, place_beside, scene_generator
from mmdit.sources.scenes.material import Material, colour_distance, draw_background, draw_colour_unlike, draw_material
from mmdit.sources.scenes.subjects import RELATIONS

# Longest side of another object, as a share of the main one's: beyond that it hides the main one or is a dot.
RATIOS = (0.25, 1.5)
LARGEST_SHARE = 1.2  # of the main object's silhouette
HIGHEST = 1.1  # of its top, where 1 is the picture's upper edge
MAX_TURN = {"left": 30.0, "right": 30.0, "front": 40.0, "behind": 40.0}  # degrees off its axis up to which it is said
APART = 0.8  # how often a place is taken at which neither hides the other: side by side they are told apart
MIN_APART = 0.1  # of the picture's width, between the middles of what stands left and right
MIN_CONTRAST = 0.2


def category_of(seed: int, split: str, index: int, categories: Sequence[str]) -> str:
    """Category of scene ``index``: each block of scenes, as many as categories, is a permutation of them."""
    block, place = divmod(index, len(categories))
    return categories[int(scene_generator(seed, split, 0, block).permutation(len(categories))[place])]


def sample_asset_layout(
    seed: int,
    split: str,
    index: int,
    assets: Sequence[Asset],
    variety: bool = False,
    max_distractors: int = 1,
    environment: Environment | None = None,
) -> Layout:
    """Draw scene ``index``; independent of the image size. ``assets``: at least one."""
    rng = scene_generator(seed, split, 1, index)
    category = category_of(seed, split, index, sorted({asset.category for asset in assets}))
    main = _place(rng, _one_of(rng, [asset for asset in assets if asset.category == category]), [], variety)
    unit = main.size
    floor, wall = _ground(rng, main.material.albedo, unit, variety)
    mesh = main.mesh(sections=16)
    camera = frame(rng, mesh, main.asset.elevations, unit)
    turn = math.radians(rng.uniform(-30, 30))
    reach = float(np.linalg.norm(mesh.vertices[:, :2], axis=1).max())
    if environment is not None:
        environment = replace(environment, turn=float(rng.uniform(0, 360)))
    layout = Layout(
        objects=(main,),
        camera=camera,
        wall_normal=(math.sin(turn), -math.cos(turn), 0.0),
        wall_distance=reach + rng.uniform(0.4, 1.9) * unit,
        floor=floor,
        wall=wall,
        sun_direction=draw_sun(rng),
        sun_strength=rng.uniform(0.85, 1.1),
        says_sizes=False,  # of its kind a thing may be small, beside another large
        environment=environment,
    )
    palette = [floor.albedo, wall.albedo, main.material.albedo]
    others = [asset for asset in assets if RATIOS[0] < asset.size / unit < RATIOS[1]]
    count = int(rng.random() < 0.65) if max_distractors == 1 else int(rng.integers(0, max_distractors + 1))
    for _ in range(min(count, max_distractors)):
        shown = {placed.category for placed in layout.objects}  # each once, so that its name says which it is
        choice = [asset for asset in others if asset.category not in shown]
        if not choice:
            break
        extra = _place(rng, _one_of(rng, choice), palette, variety)
        placed = place_beside(rng, layout, extra, unit=unit, largest_share=LARGEST_SHARE, highest=HIGHEST, apart=APART)
        layout = placed or layout
    return replace(layout, relation=relation_of(layout))


def _one_of(rng: np.random.Generator, assets: Sequence[Asset]) -> Asset:
    """One of them; every category is as likely as another, however many meshes it has."""
    categories = sorted({asset.category for asset in assets})
    category = categories[int(rng.integers(len(categories)))]
    kind = [asset for asset in assets if asset.category == category]
    return kind[int(rng.integers(len(kind)))]


def _place(rng: np.random.Generator, asset: Asset, palette: Sequence[Vector], variety: bool) -> PlacedAsset:
    """The asset at the origin, turned any way; with a colour of its own, or one unlike all of ``palette``."""
    yaw = float(rng.uniform(-180, 180))
    if asset.has_colour:
        material = Material(asset.albedo)
    else:
        albedo = draw_colour_unlike(rng, palette)
        material = draw_material(rng, albedo, variety)
        material = replace(material, texture_scale=material.texture_scale / asset.size)
    return PlacedAsset(asset.category, (1.0, 1.0, 1.0), 0.0, yaw, (0.0, 0.0), material, asset)


def _ground(rng: np.random.Generator, albedo: Vector, unit: float, variety: bool) -> tuple[Material, Material]:
    """Floor and wall, as unlike the main object's mean colour as twenty draws allow."""
    drawn = []
    for _ in range(20):
        ground = draw_background(rng, variety)
        contrast = min(colour_distance(albedo, surface.albedo) for surface in ground)
        drawn.append((contrast, ground))
        if contrast > MIN_CONTRAST:
            break
    floor, wall = max(drawn, key=lambda pair: pair[0])[1]
    return tuple(replace(surface, texture_scale=surface.texture_scale / unit) for surface in (floor, wall))  # type: ignore[return-value]


def relation_of(layout: Layout) -> str | None:
    """Where objects[0] stands as seen from objects[1], a name in ``subjects.RELATIONS``; None where words can't tell."""
    if len(layout.objects) < 2:
        return None
    first, second = layout.objects[:2]
    between = np.asarray(first.position) - np.asarray(second.position)
    angles = {name: _angle(between, np.asarray(axis)) for name, axis in RELATIONS.items()}
    relation = min(angles, key=lambda name: angles[name])
    if angles[relation] > MAX_TURN[relation]:
        return None
    columns = [_middle(placed, layout) for placed in (first, second)]
    sideways = RELATIONS[relation][0]
    return None if sideways and (columns[0] - columns[1]) * sideways < 2 * MIN_APART else relation


def _middle(placed: PlacedObject, layout: Layout) -> float:
    """Where the middle of the object is across the picture, from -1 to 1."""
    plane, _ = layout.camera.project(placed.mesh(sections=16).vertices)
    return float((plane[:, 0].min() + plane[:, 0].max()) / 2)


def _angle(first: np.ndarray, second: np.ndarray) -> float:
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return math.degrees(math.acos(float(np.clip(cosine, -1, 1))))
