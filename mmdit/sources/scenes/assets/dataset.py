"""Scenes of the user's own meshes, as a dataset on disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.errors import UserError
from mmdit.modalities.palette import class_palette
from mmdit.names import BACKGROUND_CLASSES
from mmdit.sources.processes import usable_cores
from mmdit.sources.scenes.assets.asset import Asset
from mmdit.sources.scenes.assets.catalogue import Catalogue, read_catalogue
from mmdit.sources.scenes.assets.layout import category_of, sample_asset_layout
from mmdit.sources.scenes.assets.reading import METRES, Units
from mmdit.sources.scenes.dataset import RenderReport, check_arguments, write_scenes
from mmdit.sources.scenes.environment import Environment, read_environment
from mmdit.sources.scenes.layout import Layout
from mmdit.sources.scenes.solids import SEGMENTATION_CLASSES, default_distractors
from mmdit.sources.scenes.source import SceneSource

# Raised when the same (seed, split, index) and meshes give another picture.
GENERATOR_VERSION = 1
ENVIRONMENT_VERSION = 2  # of scenes that an environment lights
DEPTH_REACH = 20.0  # depth that 16 bits hold, in longest sides of the largest asset


@dataclass(frozen=True)
class AssetScenes(SceneSource):
    """What the scenes of a split are a function of, besides their number."""

    seed: int
    split: str
    size: int
    variety: bool
    max_distractors: int
    catalogue: Catalogue
    units: Units
    environment: Environment | None = None

    @property
    def assets(self) -> tuple[Asset, ...]:
        """Those that can be used."""
        return self.catalogue.assets

    @property
    def libraries(self) -> tuple[str, ...]:
        return (*super().libraries, "pillow")

    @property
    def categories(self) -> tuple[str, ...]:
        return self.catalogue.categories

    @property
    def licence(self) -> str:
        return self.catalogue.licence

    @property
    def depth_scale(self) -> float:
        """Two digits, so that the farthest wall of the largest asset fits 16 bits."""
        least = DEPTH_REACH * max(asset.size for asset in self.assets) / 65535
        step = 10.0 ** (math.floor(math.log10(least)) - 1)
        return float(f"{math.ceil(least / step) * step:.6g}")

    @property
    def classes(self) -> list[dict[str, Any]]:
        names = (*BACKGROUND_CLASSES, *self.categories)
        colors = [entry["color"] for entry in SEGMENTATION_CLASSES]
        if len(names) > len(colors):
            colors = class_palette(len(names)).tolist()
        return [{"id": number, "name": name, "color": colors[number]} for number, name in enumerate(names)]

    def layout(self, index: int) -> Layout:
        return sample_asset_layout(
            self.seed, self.split, index, self.assets, self.variety, self.max_distractors, self.environment
        )

    def category(self, index: int) -> str | None:
        return category_of(self.seed, self.split, index, self.categories)

    def settings(self) -> dict[str, Any]:
        return {
            "generator": "mmdit data render --assets",
            "generator_version": GENERATOR_VERSION if self.environment is None else ENVIRONMENT_VERSION,
            "seed": self.seed,
            "size": self.size,
            "variety": self.variety,
            "max_distractors": self.max_distractors,
            "assets": self.catalogue.digest,
            "assets_unit": self.units.unit,
            "assets_up": self.units.up,
            "hdri": None if self.environment is None else self.environment.digest,
        }

    def records(self) -> dict[str, Any]:
        return {"meshes": list(self.catalogue.records)}


def render_assets(
    output: Path,
    folder: Path,
    num_samples: int = 1000,
    *,
    split: str = "train",
    size: int = 64,
    seed: int = 0,
    num_workers: int | None = None,
    variety: bool = False,
    max_distractors: int | None = None,
    units: Units | None = None,
    hdri: Path | None = None,
    skip_bad: bool = False,
    report: Callable[[str], None] = print,
) -> RenderReport:
    """Render scenes of the meshes of a folder into a dataset folder, as ``render_dataset`` does.

    A mesh stands upright at its real size on a floor before a wall, turned any way, beside up to ``max_distractors`` of other
    categories that are not much smaller or larger. Surfaces are matte, have the colours, vertex colours or base colour
    textures of the file, and both sides; transparency is left out. Normals come from the faces, smooth where they bend less
    than 35 degrees, and turn to the viewer.

    Args:
        output, num_samples, split, size, seed, num_workers: as for ``render_dataset``.
        folder: OBJ, glTF, GLB, PLY and STL files; ``list_assets`` says what their categories are.
        variety: also patterns on floor and wall, patterns and gloss on meshes without colours, three distractors.
        max_distractors: most other objects in a scene; by default 1, with variety 3.
        units: what the numbers of OBJ, PLY and STL mean; by default metres.
        hdri: an .hdr or .exr that lights the scenes, turned another way in each; without it, the sun of ``render_dataset``.
        skip_bad: leave out meshes that can't be used.
        report: called with one line for each mesh that can't be used, or that misses a file.

    Raises:
        UserError: a value out of range, a folder without meshes, meshes that can't be used, or an ``output`` that holds scenes
            of other settings or meshes.
    """
    check_arguments(num_samples, split, size, seed, num_workers, max_distractors)
    units = units or Units()
    if units.unit not in METRES:
        raise UserError(f"assets_unit {units.unit!r}: give one of {', '.join(METRES)}")
    environment = None if hdri is None else read_environment(Path(hdri))
    folder = Path(folder)
    catalogue = read_catalogue(folder, units, num_workers if num_workers is not None else usable_cores())
    for line in (*catalogue.bad, *catalogue.notes):
        report(line)
    if catalogue.bad and not skip_bad:
        raise UserError(
            f"{folder}: {len(catalogue.bad)} meshes can't be used, listed above; --skip_bad leaves them out"
        )
    if not catalogue.assets:
        raise UserError(f"{folder}: has no mesh that can be used")
    if max_distractors is None:
        max_distractors = default_distractors("main", variety)
    scenes = AssetScenes(seed, split, size, variety, max_distractors, catalogue, units, environment)
    return write_scenes(Path(output), num_samples, scenes, num_workers)
