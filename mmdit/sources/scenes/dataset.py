"""Procedural scenes with exact ground truth, as a dataset on disk: RGB, depth, normals and segmentation of one instant.

A scene is one main object of a category on a floor before a wall, with at most one smaller object of another category
beside it (more with variety). It is a function of (seed, split, index) alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError
from mmdit.sources.processes import map_in_processes, usable_cores
from mmdit.sources.scenes.layout import CATEGORY_NAMES, category_of, sample_layout
from mmdit.sources.scenes.render import limit_render_threads, render_layout
from mmdit.storage.files import write_atomically
from mmdit.storage.versions import version_of

MODALITIES: tuple[str, ...] = ("rgb", "depth", "normal", "segmentation")
DEPTH_SCALE = 2.5e-4  # metres per unit of the 16-bit depth PNG: reaches 16 m
MIN_SIZE, SIZE_STEP = 64, 8
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
        num_samples: scenes in the split.
        split: name of the split. Splits never share scenes.
        size: height and width in pixels: 64 or more, divisible by 8.
        seed: scenes are a function of (seed, split, index), whatever the number of workers.
        num_workers: processes; by default one for each usable core.
        variety: also textures, gloss and up to three distractors.
        max_distractors: most other objects in a scene; by default 1, with variety 3.

    Raises:
        UserError: a value out of range, or a folder rendered with other settings.
    """
    _check_arguments(num_samples, split, size, seed, num_workers, max_distractors)
    output = Path(output)
    if max_distractors is None:
        max_distractors = 3 if variety else 1
    _write_description(output, seed, size, variety, max_distractors)
    folder = output / split
    for modality in MODALITIES:
        (folder / modality).mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(num_samples) if not _is_complete(folder, index)]
    manifest = folder / "manifest.jsonl"
    already_listed = len(manifest.read_text().splitlines()) if manifest.exists() else 0
    render = partial(_render_to_disk, folder, seed, split, size, variety, max_distractors)
    workers = min(num_workers if num_workers is not None else usable_cores(), max(1, len(missing)))

    since_manifest = 0
    results = _with_progress(
        map_in_processes(render, missing, workers, _start_worker), len(missing), f"{split} {size}x{size}"
    )
    for position, _ in enumerate(results):
        since_manifest += 1
        if since_manifest == MANIFEST_EVERY:
            since_manifest = 0
            # Results come in order: everything before the next missing scene is complete.
            complete = missing[position + 1] if position + 1 < len(missing) else num_samples
            _write_manifest(manifest, seed, split, max(complete, already_listed))
    _write_manifest(manifest, seed, split, max(num_samples, already_listed))
    return RenderReport(folder, len(missing), num_samples - len(missing))


def _check_arguments(
    num_samples: int, split: str, size: int, seed: int, num_workers: int | None, max_distractors: int | None
) -> None:
    if size < MIN_SIZE or size % SIZE_STEP:
        raise UserError(f"size {size}: must be at least {MIN_SIZE} and divisible by {SIZE_STEP}")
    if num_samples < 1:
        raise UserError(f"num_samples {num_samples}: must be at least 1")
    if seed < 0:
        raise UserError(f"seed {seed}: must be 0 or more")
    if not split or not split.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"split {split!r}: must be a folder name of letters, digits, '-' and '_', such as 'train'")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"num_workers {num_workers}: must be 0 (no extra process) or more")
    if max_distractors is not None and max_distractors < 0:
        raise UserError(f"max_distractors {max_distractors}: must be 0 or more")


def _write_description(output: Path, seed: int, size: int, variety: bool, max_distractors: int) -> None:
    """Write dataset.json, or check that the one that is there was written for the same scenes."""
    settings = {
        "generator": "mmdit data render",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "size": size,
        "variety": variety,
        "max_distractors": max_distractors,
    }
    path = output / "dataset.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())["provenance"]
            changed = [
                f"{key} {found.get(key)!r}, not {value!r}" for key, value in settings.items() if found.get(key) != value
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not written by 'mmdit data render'; choose an empty folder") from error
        if changed:
            raise UserError(f"{output} was rendered with {'; '.join(changed)}: use the same settings or another folder")
        return
    description = {
        "modalities": list(MODALITIES),
        "categories": list(CATEGORY_NAMES),
        "segmentation_classes": list(SEGMENTATION_CLASSES),
        "depth_scale": DEPTH_SCALE,
        "licence": "CC0-1.0",
        "provenance": settings | {name: version_of(name) for name in ("mitsuba", "trimesh", "numpy")},
    }
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(description, indent=2).encode() + b"\n")


def _sample_id(index: int) -> str:
    return f"{index:06d}"


def _is_complete(folder: Path, index: int) -> bool:
    return all((folder / modality / f"{_sample_id(index)}.png").exists() for modality in MODALITIES)


def _write_manifest(path: Path, seed: int, split: str, count: int) -> None:
    lines = []
    for index in range(count):
        name = _sample_id(index)
        row = {"id": name, "category": category_of(seed, split, index)}
        lines.append(json.dumps(row | {modality: f"{modality}/{name}.png" for modality in MODALITIES}))
    write_atomically(path, "".join(line + "\n" for line in lines).encode())


def _png(array: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def _render_to_disk(
    folder: Path, seed: int, split: str, size: int, variety: bool, max_distractors: int, index: int
) -> int:
    sample = render_scene(seed, split, index, size, variety, max_distractors)
    depth_units = np.round(sample.depth / DEPTH_SCALE)
    if depth_units.min() < 1 or depth_units.max() > np.iinfo(np.uint16).max:
        span = f"{sample.depth.min():.3f} .. {sample.depth.max():.3f} m"
        raise RuntimeError(f"scene {index} of {split}: depth {span} does not fit 16 bits")
    arrays = {
        "rgb": sample.rgb,
        "depth": depth_units.astype(np.uint16),
        "normal": np.round((sample.normal + 1) / 2 * 255).astype(np.uint8),
        "segmentation": sample.segmentation,
    }
    for modality, array in arrays.items():
        write_atomically(folder / modality / f"{_sample_id(index)}.png", _png(array))
    return index


def _start_worker() -> None:
    limit_render_threads(1)


def _with_progress(results: Iterator[int], total: int, label: str) -> Iterator[int]:
    from tqdm import tqdm

    return iter(tqdm(results, total=total, desc=label, unit="scene", disable=total == 0, mininterval=0.5))
