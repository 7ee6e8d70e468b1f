"""Hypersim's own layout (Roberts et al., arXiv 2011.02523) -> the dataset layout: its ground truth, no labeller.

What becomes of its numbers is in ``mmdit.sources.hypersim.camera``.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.data.writer import DatasetWriter, read_description, write_description
from mmdit.errors import UserError, one_line
from mmdit.modalities.palette import class_palette
from mmdit.modalities.rgb import read_picture
from mmdit.progress import Progress
from mmdit.sources.hypersim.camera import camera_normals, camera_rays, planar_depth, tone_map
from mmdit.sources.hypersim.hdf5 import Reader
from mmdit.sources.processes import MAX_WORKERS, map_in_processes, usable_cores
from mmdit.storage.listing import list_folders
from mmdit.storage.lock import FolderLock
from mmdit.storage.requests import Request

GENERATOR = "mmdit data hypersim"
GENERATOR_VERSION = 1
LICENCE = "CC-BY-SA-3.0"
MODALITIES = ("rgb", "depth", "normal", "segmentation")
DEPTH_SCALE = 0.001  # reaches 65.5 m; what is farther is invalid
SPLIT_CSV, CAMERAS_CSV = "metadata_images_split_scene_v1.csv", "metadata_camera_parameters.csv"
COLUMNS = {
    SPLIT_CSV: ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name"),
    CAMERAS_CSV: ("scene_name",),
}

# NYU40's names in the order of its ids, which start at 1; Hypersim has -1 for pixels without a label.
NYU40_NAMES = (
    *("unlabelled", "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *("clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box"),
    *("whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure"),
    *("other furniture", "other prop"),
)


@dataclass(frozen=True)
class Frame:
    """One image of a scene. ``split``: the one it goes to; ``ray_matrix``: 3 x 3, (u, v, 1) -> a ray, None = default."""

    scene: str
    camera: str
    number: int
    split: str
    ray_matrix: tuple[tuple[float, ...], ...] | None = None

    @property
    def id(self) -> str:
        return f"{self.scene}/{self.camera}/{self.number:04d}"


@dataclass(frozen=True)
class BadFrame:
    """A frame that was not imported, and why."""

    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@dataclass(frozen=True)
class ImportReport:
    """What `import_hypersim` did: samples in each split's manifest, and the frames that are in none."""

    num_samples: dict[str, int]
    bad: tuple[BadFrame, ...]


def import_hypersim(
    source: str | Path,
    output: str | Path,
    *,
    split: str = "train",
    split_csv: str | Path | None = None,
    cameras_csv: str | Path | None = None,
    num_workers: int | None = None,
    allow_outside: bool = False,
) -> ImportReport:
    """Import all scenes of a folder; call it again to go on where it stopped.

    Args:
        source: folder of scenes.
        output: dataset folder.
        split: where all frames go without split_csv.
        split_csv, cameras_csv: Hypersim's tables; None = those of their usual names in source, if they are there.
        num_workers: processes; None = one for each usable core.
        allow_outside: accept HDF5 files that link to files outside source.

    Raises:
        UserError: no scene; a table that can't be read; an output that something else made, or that another process
            writes into.
    """
    if num_workers is not None and not 0 <= num_workers <= MAX_WORKERS:
        raise UserError(f"num_workers {num_workers}: must be 0 (no extra process) or more, at most {MAX_WORKERS}")
    source, output = Path(source), Path(output)
    split_table = _find_table(source, split_csv, SPLIT_CSV, "--split_csv")
    camera_table = _find_table(source, cameras_csv, CAMERAS_CSV, "--cameras_csv")
    frames = list(_frames(source, split, split_table, camera_table))
    if not frames:
        raise UserError(f"{source}: no frame in it (<scene>/images/scene_<camera>_geometry_hdf5/frame.0000.*.hdf5)")
    writers = {
        name: DatasetWriter(output, name, DEPTH_SCALE) for name in dict.fromkeys(frame.split for frame in frames)
    }
    with FolderLock(output, GENERATOR):
        _describe(output, exact_cameras=camera_table is not None)
        done = {
            name: set.intersection(*(writer.existing(modality) for modality in MODALITIES))
            for name, writer in writers.items()
        }
        todo = [frame for frame in frames if frame.id not in done[frame.split]]
        workers = min(usable_cores() if num_workers is None else num_workers, len(todo))
        work = partial(_import_frame, Reader(source, allow_outside), output)
        progress = Progress(len(todo), "import", "frame", enabled=bool(todo))
        problems = progress.track(map_in_processes(work, todo, workers))
        bad = tuple(problem for problem in problems if problem is not None)
        counts = {}
        for name, writer in writers.items():
            rows = ((frame.id, None) for frame in frames if frame.split == name)
            counts[name] = writer.write_manifest(rows, MODALITIES)
        return ImportReport(counts, bad)


def _import_frame(reader: Reader, output: Path, frame: Frame) -> BadFrame | None:
    try:
        arrays = _read_frame(reader, frame)
    except UserError as error:
        return BadFrame(frame.id, str(error))
    except Exception as error:  # a bad file must not stop the import of other frames
        reason = one_line(error, 160)
        return BadFrame(frame.id, f"{type(error).__name__}: {reason}")
    writer = DatasetWriter(output, frame.split, DEPTH_SCALE)
    for name, array in arrays.items():
        writer.save(name, frame.id, array)
    return None


def _read_frame(reader: Reader, frame: Frame) -> dict[str, np.ndarray]:
    """Return a frame's maps in raw units, RGB last. Raises UserError naming the file that can't be used."""
    scene = reader.root / frame.scene
    stem = f"frame.{frame.number:04d}"
    geometry = scene / "images" / f"scene_{frame.camera}_geometry_hdf5"
    distance = reader.read(geometry / f"{stem}.depth_meters.hdf5", 2)
    rays = camera_rays(distance.shape[0], distance.shape[1], frame.ray_matrix)
    rotation = _orientation(reader, scene / "_detail" / frame.camera, frame.number)
    world = reader.read(geometry / f"{stem}.normal_world.hdf5", 3)
    _check_sizes(depth=distance, normal=world)
    normals = camera_normals(world, rotation, rays)
    semantic = reader.read(geometry / f"{stem}.semantic.hdf5", 2, kinds="iu").astype(np.int64)
    if semantic.max() >= len(NYU40_NAMES):
        raise UserError(f"semantic id {semantic.max()}: NYU40 ends at {len(NYU40_NAMES) - 1}")
    arrays = {
        "depth": planar_depth(distance, rays),
        "normal": normals,
        "segmentation": semantic.clip(min=0),
        "rgb": _rgb(reader, scene, frame, stem, geometry),
    }
    _check_sizes(**arrays)
    if not (arrays["depth"] >= DEPTH_SCALE).any() or not normals.any():
        raise UserError("no valid pixel")
    return arrays


def _orientation(reader: Reader, folder: Path, number: int) -> np.ndarray:
    """Return a frame's rotation, camera to world (3, 3); a table beside them says whose the rows are, if not 0, 1, 2, ..."""
    path, table = folder / "camera_keyframe_orientations.hdf5", folder / "camera_keyframe_frame_indices.hdf5"
    orientations = reader.read(path)
    if orientations.ndim != 3 or orientations.shape[1:] != (3, 3):
        raise UserError(f"{path}: has shape {orientations.shape}, not (frames, 3, 3)")
    frames = reader.read(table).reshape(-1) if table.exists() else np.arange(len(orientations))
    rows = np.flatnonzero(frames == number)
    if len(rows) != 1 or rows[0] >= len(orientations):
        raise UserError(f"{folder}: the camera has {len(orientations)} orientations, none for this frame")
    rotation = orientations[rows[0]].astype(np.float64)
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):  # NaN is not close either
        raise UserError(f"{path}: the orientation of this frame is not a rotation")
    return rotation


def _rgb(reader: Reader, scene: Path, frame: Frame, stem: str, geometry: Path) -> np.ndarray:
    """The radiance, tone-mapped; where it was not downloaded, Hypersim's own tone-mapped preview."""
    radiance = scene / "images" / f"scene_{frame.camera}_final_hdf5" / f"{stem}.color.hdf5"
    preview = scene / "images" / f"scene_{frame.camera}_final_preview" / f"{stem}.tonemap.jpg"
    if not radiance.is_file() and preview.is_file():
        return read_picture(preview)
    color = reader.read(radiance, 3)
    entities = geometry / f"{stem}.render_entity_id.hdf5"
    finite = np.isfinite(color).all(axis=-1)
    if not finite.any():
        raise UserError(f"{radiance}: all pixels are NaN or infinite")
    valid = reader.read(entities, 2) != -1 if entities.exists() else finite
    _check_sizes(color=color, render_entity_id=valid)
    return tone_map(color, valid)


def _check_sizes(**arrays: np.ndarray) -> None:
    sizes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the files differ in size: {sizes}")


def _find_table(source: Path, given: str | Path | None, name: str, option: str) -> list[dict[str, str]] | None:
    path = source / name if given is None else Path(given)
    if not path.is_file():
        if given is None:
            return None
        raise UserError(f"{option} {str(path)!r}: no such file; Hypersim's repository has it as {name}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{option} {str(path)!r}: is not a table of text ({error}); give Hypersim's {name}") from None
    lacking = [column for column in COLUMNS[name] if not rows or rows[0].get(column) is None]
    if lacking:
        raise UserError(f"{option} {str(path)!r}: has no column {lacking[0]!r}; give Hypersim's {name}")
    return rows


def _frames(
    source: Path, split: str, split_table: list[dict[str, str]] | None, camera_table: list[dict[str, str]] | None
) -> Iterator[Frame]:
    """Frames of the scenes that are there; those that the table keeps back are left out, as in the public release."""
    if not source.is_dir():
        raise UserError(f"--source {str(source)!r}: no such folder; give the one that holds Hypersim's scenes")
    matrices = {row["scene_name"]: _ray_matrix(row) for row in camera_table or ()}
    splits: Mapping[tuple[str, str, int], str] | None = None
    if split_table is not None:
        splits = {
            (row["scene_name"], row["camera_name"], _frame_number(row)): row["split_partition_name"]
            for row in split_table
            if row["included_in_public_release"] == "True"
        }
    found = (folder for name in list_folders(source) for folder in (source / name).glob("images/scene_*_geometry_hdf5"))
    for folder in sorted(found):
        scene, camera = folder.parents[1].name, folder.name[len("scene_") : -len("_geometry_hdf5")]
        if camera_table is not None and scene not in matrices:
            raise UserError(f"scene {scene!r} is not in the table of cameras: its rays are unknown")
        numbers = {int(m[1]) for name in os.listdir(folder) if (m := re.match(r"frame\.(\d+)\..*\.hdf5$", name))}
        for number in sorted(numbers):
            place = split if splits is None else splits.get((scene, camera, number))
            if place:
                yield Frame(scene, camera, number, place, matrices.get(scene))


def _frame_number(row: Mapping[str, str]) -> int:
    try:
        return int(row["frame_id"])
    except ValueError:
        raise UserError(f"the table of splits has the frame_id {row['frame_id']!r}: it is a whole number") from None


def _ray_matrix(row: Mapping[str, str]) -> tuple[tuple[float, ...], ...]:
    try:
        return tuple(tuple(float(row[f"M_cam_from_uv_{i}{j}"]) for j in range(3)) for i in range(3))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"scene {row.get('scene_name')!r}: the table of cameras has no M_cam_from_uv for it") from None


def _describe(output: Path, exact_cameras: bool) -> None:
    settings: dict[str, Any] = {
        "generator": GENERATOR,
        "generator_version": GENERATOR_VERSION,
        "intrinsics": "per scene" if exact_cameras else "60 degrees",
    }
    old = read_description(output)
    if old is not None:
        Request(settings).refuse_other(old["provenance"], output, "frames")
    colors = class_palette(len(NYU40_NAMES)).tolist()
    classes = [{"id": i, "name": name, "color": colors[i]} for i, name in enumerate(NYU40_NAMES)]
    write_description(
        output,
        {
            "modalities": list(MODALITIES),
            "categories": [],
            "segmentation_classes": classes,
            "depth_scale": DEPTH_SCALE,
            "licence": LICENCE,
            "provenance": settings,
        },
    )
