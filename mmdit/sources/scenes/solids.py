"""Scenes of solids: one main object of a category on a floor before a wall, or subjects that come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmdit.sources.scenes.compositions import COMPOSITIONS
from mmdit.sources.scenes.layout import CATEGORY_NAMES, Layout
from mmdit.sources.scenes.source import SceneSample, SceneSource

DEPTH_SCALE = 2.5e-4  # metres per unit of the 16-bit depth PNG: reaches 16 m
# Raised when the same (seed, split, index) gives another picture, so that no folder mixes two generators.
GENERATOR_VERSION = 1

# Corners and face centres of the RGB cube: 14 colours at least 0.707 of its edge apart, the most for 11 or more points.
# Floor and wall share an edge, and the two face centres nearest to its middle are left out, because most label borders
# are between those two and a blend of their colours must stay nearer to them than to a third.
_PALETTE: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (0, 0, 255),
    (255, 0, 0),
    (0, 255, 0),
    (255, 255, 0),
    (255, 0, 255),
    (0, 255, 255),
    (255, 255, 255),
    (255, 128, 128),
    (128, 255, 128),
    (128, 128, 0),
    (128, 128, 255),
)
SEGMENTATION_CLASSES: tuple[dict[str, Any], ...] = tuple(
    {"id": number, "name": name, "color": list(_PALETTE[number])}
    for number, name in enumerate(("floor", "wall", *CATEGORY_NAMES))
)


@dataclass(frozen=True)
class Solids(SceneSource):
    """What the scenes of a split are a function of, besides their number."""

    seed: int
    split: str
    size: int
    variety: bool
    max_distractors: int
    composition: str

    @property
    def licence(self) -> str:
        return "CC0-1.0"

    @property
    def categories(self) -> tuple[str, ...]:
        return CATEGORY_NAMES

    @property
    def depth_scale(self) -> float:
        return DEPTH_SCALE

    @property
    def classes(self) -> list[dict[str, Any]]:
        return list(SEGMENTATION_CLASSES)

    def layout(self, index: int) -> Layout:
        composition = COMPOSITIONS[self.composition]
        return composition.layout(self.seed, self.split, index, self.variety, self.max_distractors)

    def category(self, index: int) -> str | None:
        return COMPOSITIONS[self.composition].category(self.seed, self.split, index)

    def references(self, layout: Layout, index: int, number: int) -> list[int]:
        return COMPOSITIONS[self.composition].references(layout, index, number)

    def same_ground(self, index: int) -> int | None:
        return COMPOSITIONS[self.composition].same_ground(index)

    def settings(self) -> dict[str, Any]:
        return {
            "generator": "mmdit data render",
            "generator_version": GENERATOR_VERSION,
            "seed": self.seed,
            "size": self.size,
            "variety": self.variety,
            "max_distractors": self.max_distractors,
            "composition": self.composition,
        }


def render_scene(
    seed: int,
    split: str,
    index: int,
    *,
    size: int = 64,
    variety: bool = False,
    max_distractors: int | None = None,
    composition: str = "main",
) -> SceneSample:
    """Render scene `index` of a split at size x size pixels. max_distractors: None = `default_distractors`."""
    if max_distractors is None:
        max_distractors = default_distractors(composition, variety)
    return Solids(seed, split, size, variety, max_distractors, composition).sample(index)


def default_distractors(composition: str, variety: bool) -> int:
    """Most other objects in a scene: 1, or 3 with variety where one object is the main one."""
    return 3 if variety and composition == "main" else 1
