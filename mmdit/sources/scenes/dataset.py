"""Procedural scenes with exact ground truth, as a dataset on disk: RGB, depth, normals and segmentation of one instant.

A scene is one main object of a category on a floor before a wall, with at most one smaller object of another category
beside it (more with variety). It is a function of (seed, split, index) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.data.lines import MANIFEST
from mmdit.data.writer import DatasetWriter, check_split, read_description, write_description
from mmdit.errors import UserError
from mmdit.progress import Progress
from mmdit.sources.processes import MAX_WORKERS, map_in_processes, usable_cores
from mmdit.sources.scenes.layout import CATEGORY_NAMES, category_of, sample_layout
from mmdit.sources.scenes.render import limit_render_threads, render_layout
from mmdit.storage.lock import FolderLock
from mmdit.storage.requests import Request
from mmdit.storage.versions import version_of

MODALITIES: tuple[str, ...] = ("rgb", "depth", "normal", "segmentation")
DEPTH_SCALE = 2.5e-4  # metres per unit of the 16-bit depth PNG: reaches 16 m
MIN_SIZE, MAX_SIZE, SIZE_STEP = 64, 4096, 8
MAX_SAMPLES = 10**8
# Raised when the same (seed, split, index) gives another picture, so that no folder mixes two generators.
GENERATOR_VERSION = 1
MANIFEST_EVERY = 200

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
class SceneSample:
    """One scene, every map from the same camera.

    rgb: uint8 (H, W, 3), sRGB; depth: float32 (H, W), metres along the optical axis; normal: float32 (H, W, 3), unit
    vectors in the camera frame (x right, y up, z towards the viewer); segmentation: uint8 (H, W), ids of
    SEGMENTATION_CLASSES.
    """

    rgb: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    segmentation: np.ndarray
    category: str


@dataclass(frozen=True)
class RenderReport:
    """What `render_dataset` did: the split's folder, and how many scenes were rendered now or were there already."""

    path: Path
    num_rendered: int
    num_skipped: int


def render_scene(
    seed: int, split: str, index: int, size: int = 64, variety: bool = False, max_distractors: int | None = None
) -> SceneSample:
    """Render scene `index` of a split at size x size pixels. max_distractors: None = 1, or 3 with variety."""
    layout = sample_layout(seed, split, index, variety, max_distractors)
    rgb, depth, normal, surface = render_layout(layout, size)
    class_ids = [0, 1] + [2 + CATEGORY_NAMES.index(placed.category) for placed in layout.objects]
    return SceneSample(rgb, depth, normal, np.asarray(class_ids, dtype=np.uint8)[surface], layout.category)


def render_dataset(
    output: Path,
    num_samples: int = 1000,
    split: str = "train",
    size: int = 64,
    seed: int = 0,
    num_workers: int | None = None,
    variety: bool = False,
    max_distractors: int | None = None,
) -> RenderReport:
    """Render scenes 0 .. num_samples - 1 of a split into a dataset folder; scenes that are there already are kept.

    The manifest grows with the rendering and always lists complete scenes from index 0 on, so the folder is usable
    before the end. Interrupted at any moment, the same call goes on; with a larger num_samples it extends the split.

    Args:
        output: the dataset folder, see "A dataset on disk".
        num_samples: scenes in the split, at most 10^8.
        split: name of the split. Splits never share scenes.
        size: height and width in pixels: 64 to 4096, divisible by 8.
        seed: scenes are a function of (seed, split, index), whatever the number of workers.
        num_workers: processes; by default one for each usable core.
        variety: also textures, gloss and up to three distractors.
        max_distractors: most other objects in a scene; by default 1, with variety 3.

    Raises:
        UserError: a value out of range, a folder rendered with other settings, or one that another process writes into.
    """
    _check_arguments(num_samples, split, size, seed, num_workers, max_distractors)
    output = Path(output)
    if max_distractors is None:
        max_distractors = 3 if variety else 1
    with FolderLock(output, "mmdit data render"):
        _describe(output, seed, size, variety, max_distractors)
        writer = DatasetWriter(output, split, DEPTH_SCALE)
        for modality in MODALITIES:
            (writer.folder / modality).mkdir(parents=True, exist_ok=True)
        listed = _count_lines(writer.folder / MANIFEST)
        render = partial(_render_to_disk, output, seed, split, size, variety, max_distractors)
        workers = min(num_workers if num_workers is not None else usable_cores(), num_samples)
        num_rendered, due = 0, listed + MANIFEST_EVERY
        with Progress(num_samples, f"{split} {size}x{size}", "scene") as progress:
            missing = _missing(writer, num_samples, progress)
            for index in map_in_processes(render, missing, workers, _start_worker):
                num_rendered += 1
                progress.update()
                # Results come in order, so all scenes before this one are complete. The longer the manifest, the more
                # rarely it is written again.
                if index + 1 >= due:
                    _write_manifest(writer, seed, split, index + 1)
                    due = index + 1 + max(MANIFEST_EVERY, (index + 1) // 10)
        _write_manifest(writer, seed, split, max(num_samples, listed))
        return RenderReport(writer.folder, num_rendered, num_samples - num_rendered)


def _missing(writer: DatasetWriter, num_samples: int, progress: Progress) -> Iterator[int]:
    for index in range(num_samples):
        if all(writer.path(modality, _sample_id(index)).exists() for modality in MODALITIES):
            progress.update()
        else:
            yield index


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _check_arguments(
    num_samples: int, split: str, size: int, seed: int, num_workers: int | None, max_distractors: int | None
) -> None:
    if not MIN_SIZE <= size <= MAX_SIZE or size % SIZE_STEP:
        raise UserError(f"size {size}: must be at least {MIN_SIZE}, at most {MAX_SIZE} and divisible by {SIZE_STEP}")
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise UserError(f"num_samples {num_samples}: must be at least 1 and at most {MAX_SAMPLES}")
    if seed < 0:
        raise UserError(f"seed {seed}: must be 0 or more")
    check_split(split)
    if num_workers is not None and not 0 <= num_workers <= MAX_WORKERS:
        raise UserError(f"num_workers {num_workers}: must be 0 (no extra process) or more, at most {MAX_WORKERS}")
    if max_distractors is not None and max_distractors < 0:
        raise UserError(f"max_distractors {max_distractors}: must be 0 or more")


def _describe(output: Path, seed: int, size: int, variety: bool, max_distractors: int) -> None:
    """Write dataset.json, or check that the one that is there was written for the same scenes."""
    settings = {
        "generator": "mmdit data render",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "size": size,
        "variety": variety,
        "max_distractors": max_distractors,
    }
    found = read_description(output)
    if found is not None:
        remedy = "use the same settings or another folder"
        Request(settings).refuse_other(found["provenance"], output, "scenes", remedy)
        return
    description = {
        "modalities": list(MODALITIES),
        "categories": list(CATEGORY_NAMES),
        "segmentation_classes": list(SEGMENTATION_CLASSES),
        "depth_scale": DEPTH_SCALE,
        "licence": "CC0-1.0",
        "provenance": settings | {name: version_of(name) for name in ("mitsuba", "trimesh", "numpy")},
    }
    write_description(output, description)


def _sample_id(index: int) -> str:
    return f"{index:06d}"


def _write_manifest(writer: DatasetWriter, seed: int, split: str, count: int) -> None:
    writer.write_rows((_sample_id(index), category_of(seed, split, index), MODALITIES) for index in range(count))


def _render_to_disk(
    output: Path, seed: int, split: str, size: int, variety: bool, max_distractors: int, index: int
) -> int:
    sample = render_scene(seed, split, index, size, variety, max_distractors)
    depth_units = np.round(sample.depth / DEPTH_SCALE)
    if depth_units.min() < 1 or depth_units.max() > np.iinfo(np.uint16).max:
        span = f"{sample.depth.min():.3f} .. {sample.depth.max():.3f} m"
        raise RuntimeError(f"scene {index} of {split}: depth {span} does not fit 16 bits")
    writer = DatasetWriter(output, split, DEPTH_SCALE)
    # Version 1 of the generator rounds in float32; the writer's float64 would round a tie otherwise.
    arrays = {
        "rgb": sample.rgb,
        "depth": depth_units.astype(np.float64) * DEPTH_SCALE,
        "normal": np.round((sample.normal + 1) / 2 * 255).astype(np.float64) / 127.5 - 1,
        "segmentation": sample.segmentation,
    }
    for modality, array in arrays.items():
        writer.save(modality, _sample_id(index), array)
    return index


def _start_worker() -> None:
    limit_render_threads(1)
