"""Procedural scenes with exact ground truth, as a dataset on disk: RGB, depth, normals and segmentation of one instant.

A scene is one main object of a category on a floor before a wall, with at most one smaller object of another category
beside it (more with variety), or, composed of "subjects", one or two that come back in other scenes. It is a function of
(seed, split, index) alone. ``prompts.jsonl`` describes it, by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit.data.lines import MANIFEST
from mmdit.data.prompts_writer import PromptsWriter, entity_values
from mmdit.data.writer import DatasetWriter, check_split, read_description, write_description
from mmdit.errors import UserError, unknown_name
from mmdit.modalities import IMAGE
from mmdit.modalities.files import is_whole
from mmdit.progress import Progress
from mmdit.sources.processes import MAX_WORKERS, map_in_processes, usable_cores
from mmdit.sources.scenes.captions import FLOOR, GROUND, STYLE, WALL, captions, ground_phrase, phrase
from mmdit.sources.scenes.compositions import COMPOSITIONS
from mmdit.sources.scenes.layout import scene_generator
from mmdit.sources.scenes.renderer import limit_render_threads
from mmdit.sources.scenes.solids import DEPTH_SCALE, SEGMENTATION_CLASSES, Solids, default_distractors, render_scene
from mmdit.sources.scenes.source import SceneSample, SceneSource
from mmdit.storage.lock import FolderLock
from mmdit.storage.requests import Request
from mmdit.storage.versions import version_of

__all__ = [
    "DEPTH_SCALE",
    "MODALITIES",
    "SEGMENTATION_CLASSES",
    "RenderReport",
    "SceneSample",
    "check_arguments",
    "render_dataset",
    "render_scene",
    "write_scenes",
]

MODALITIES: tuple[str, ...] = ("rgb", "depth", "normal", "segmentation")
MIN_SIZE, MAX_SIZE, SIZE_STEP = 64, 4096, 8
MAX_SAMPLES = 10**8
MANIFEST_EVERY = 200
CAPTION_STREAM = 6  # of the scenes' generators
EARLIER = {"composition": "main"}  # what dataset.json of earlier versions leaves unsaid


@dataclass(frozen=True)
class RenderReport:
    """What `render_dataset` did: the split's folder, and how many scenes were rendered now or were there already."""

    path: Path
    num_rendered: int
    num_skipped: int


def render_dataset(
    output: Path,
    num_samples: int = 1000,
    *,
    split: str = "train",
    size: int = 64,
    seed: int = 0,
    num_workers: int | None = None,
    variety: bool = False,
    max_distractors: int | None = None,
    composition: str = "main",
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
        composition: name in ``COMPOSITIONS``: "main", "subjects" for prompts, or "mixed", half of each.

    Raises:
        UserError: a value out of range, an unknown name, a folder rendered with other settings, or one that another process
            writes into.
    """
    check_arguments(num_samples, split, size, seed, num_workers, max_distractors)
    if composition not in COMPOSITIONS:
        raise unknown_name("composition", composition, COMPOSITIONS)
    if max_distractors is None:
        max_distractors = default_distractors(composition, variety)
    scenes = Solids(seed, split, size, variety, max_distractors, composition)
    return write_scenes(Path(output), num_samples, scenes, num_workers)


def write_scenes(output: Path, num_samples: int, scenes: SceneSource, num_workers: int | None = None) -> RenderReport:
    """Render any scenes into a dataset folder, as ``render_dataset`` does; the arguments have been checked."""
    with FolderLock(output, "mmdit data render"):
        _describe(output, scenes)
        writer = DatasetWriter(output, scenes.split, scenes.depth_scale)
        for modality in MODALITIES:
            (writer.folder / modality).mkdir(parents=True, exist_ok=True)
        listed = _count_lines(writer.folder / MANIFEST)
        render = partial(_render_to_disk, output, scenes)
        workers = min(num_workers if num_workers is not None else usable_cores(), num_samples)
        num_rendered, due = 0, listed + MANIFEST_EVERY
        with Progress(num_samples, f"{scenes.split} {scenes.size}x{scenes.size}", "scene") as progress:
            missing = _missing(writer, num_samples, progress)
            for index in map_in_processes(render, missing, workers, _start_worker):
                num_rendered += 1
                progress.update()
                # Results come in order, so all scenes before this one are complete. The longer the manifest, the more
                # rarely it is written again.
                if index + 1 >= due:
                    _write_manifest(writer, scenes, index + 1)
                    due = index + 1 + max(MANIFEST_EVERY, (index + 1) // 10)
        _write_manifest(writer, scenes, max(num_samples, listed))
        return RenderReport(writer.folder, num_rendered, num_samples - num_rendered)


def _missing(writer: DatasetWriter, num_samples: int, progress: Progress) -> Iterator[int]:
    for index in range(num_samples):
        if all(is_whole(writer.path(modality, _sample_id(index))) for modality in MODALITIES):
            progress.update()
        else:
            yield index


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def check_arguments(
    num_samples: int, split: str, size: int, seed: int, num_workers: int | None, max_distractors: int | None
) -> None:
    """Raise UserError for a value that no rendering takes, before anything is written."""
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


def _describe(output: Path, scenes: SceneSource) -> None:
    """Write dataset.json, or check that the one that is there was written for the same scenes."""
    settings = scenes.settings()
    found = read_description(output)
    if found is not None:
        remedy = "use the same settings or another folder"
        Request(settings).refuse_other({**EARLIER, **found["provenance"]}, output, "scenes", remedy)
        return
    description = {
        "modalities": list(MODALITIES),
        "categories": list(scenes.categories),
        "segmentation_classes": scenes.classes,
        "depth_scale": scenes.depth_scale,
        "licence": scenes.licence,
        "provenance": settings | scenes.records() | {name: version_of(name) for name in scenes.libraries},
    }
    write_description(output, description)


def _sample_id(index: int) -> str:
    return f"{index:06d}"


def _write_manifest(writer: DatasetWriter, scenes: SceneSource, count: int) -> None:
    """List the first ``count`` scenes, and their captions as far as this version rendered them."""

    def row(index: int) -> tuple[str, str | None, dict[str, str]]:
        name = _sample_id(index)
        files = {modality: writer.name(modality, name) for modality in MODALITIES}
        return name, scenes.category(index), files

    writer.write_rows(map(row, range(count)))
    prompts = PromptsWriter(writer.folder)
    lines = prompts.stored(_sample_id(index) for index in range(count))
    first = next(lines, None)
    if first is None:
        return
    listed = {writer.name(IMAGE, _sample_id(index)) for index in range(count)}

    def among_listed(line: dict[str, Any]) -> dict[str, Any]:
        for entity in line["entities"]:
            entity["images"] = [name for name in entity["images"] if name in listed]
        return line

    prompts.write(map(among_listed, chain([first], lines)))


def _write_prompt(writer: DatasetWriter, scenes: SceneSource, index: int, sample: SceneSample) -> None:
    """Captions and entities of a scene, and a mask of everything named that can be seen."""
    layout = sample.layout
    drawn = captions(layout, scene_generator(scenes.seed, scenes.split, CAPTION_STREAM, index))
    prompts, name = PromptsWriter(writer.folder), _sample_id(index)
    entities: list[dict[str, Any]] = []

    def add(words: str, spans: list[Any], mask: np.ndarray, others: list[int]) -> None:
        if not mask.any():
            return
        file = None
        if not mask.all():
            file = prompts.save_picture("mask", name, len(entities), Image.fromarray(mask))
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        images = [writer.name(IMAGE, _sample_id(other)) for other in others]
        entities.append(entity_values(words, spans, box, file, images))

    for number, placed in enumerate(layout.objects):
        others = scenes.references(layout, index, number)
        add(phrase(placed), [caption.spans[number] for caption in drawn], sample.surface == 2 + number, others)
    other = scenes.same_ground(index)
    surfaces = {FLOOR: sample.surface == 0, WALL: sample.surface == 1, STYLE: np.ones_like(sample.surface, bool)}
    for ground in GROUND:
        spans = [caption.ground.get(ground) for caption in drawn]
        if any(spans):
            add(ground_phrase(layout, ground), spans, surfaces[ground], [] if other is None else [other])
    prompts.save(name, [caption.text for caption in drawn], entities)


def _render_to_disk(output: Path, scenes: SceneSource, index: int) -> int:
    sample, split, scale = scenes.sample(index), scenes.split, scenes.depth_scale
    depth_units = np.round(sample.depth / scale)
    if depth_units.min() < 1 or depth_units.max() > np.iinfo(np.uint16).max:
        span = f"{sample.depth.min():.3f} .. {sample.depth.max():.3f} m"
        raise RuntimeError(f"scene {index} of {split}: depth {span} does not fit 16 bits")
    writer = DatasetWriter(output, split, scale)
    # Version 1 of the generator rounds in float32; the writer's float64 would round a tie otherwise.
    arrays = {
        "rgb": sample.rgb,
        "depth": depth_units.astype(np.float64) * scale,
        "normal": np.round((sample.normal + 1) / 2 * 255).astype(np.float64) / 127.5 - 1,
        "segmentation": sample.segmentation,
    }
    _write_prompt(writer, scenes, index, sample)  # first: a scene is whole when its modalities are there
    for modality, array in arrays.items():
        writer.save(modality, _sample_id(index), array)
    return index


def _start_worker() -> None:
    limit_render_threads(1)
