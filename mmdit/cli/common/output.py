"""Samples as folders: every file of a sample appears at once, and nothing that is there is lost silently.

A folder is written under a hidden name and renamed. One that exists is replaced when it came from the same request; where
it came from another one, the run is refused before it starts, unless ``overwrite`` is set; a folder that holds
anything else is never touched.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from mmdit.cli.common.inputs import DEPTH_SPACE_KEY
from mmdit.cli.common.pictures import color_depth, color_normal, color_segmentation, labelled_grid
from mmdit.errors import UserError
from mmdit.modalities.codecs import SegmentationCodec, build_codec
from mmdit.modalities.modality import Modality
from mmdit.storage.files import write_atomically, writing, writing_folder
from mmdit.storage.json_object import json_bytes, read_object
from mmdit.storage.requests import Request
from mmdit.storage.versions import versions

METADATA = "metadata.json"
SAMPLE_FILES = frozenset(
    {
        "rgb.png",
        "depth.npy",
        "depth.png",
        "depth_vis.png",
        "normal.npy",
        "normal.png",
        "segmentation.png",
        "grid.png",
        METADATA,
    }
)
# rgb 3, depth 4 + 2 + 3, normal 12 + 3, segmentation 1, grid at most 4 tiles; PNG seldom needs all of it.
BYTES_PER_PIXEL = 40
_PROBE_BYTES = 65536


@dataclass(frozen=True)
class Sample:
    """One result: raw arrays per modality as the pipeline returns them, and the request that made it, as JSON values."""

    name: str
    arrays: Mapping[str, np.ndarray]
    request: Mapping[str, Any]


def prepare_folder(output: Path, num_bytes: int = 0) -> None:
    """Create a folder and prove that it can be written and has room for ``num_bytes``.

    Raises:
        UserError: it is a file, can't be written, or its disk is full.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; --output is a folder")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".mmdit-probe-{os.getpid()}"
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(output).free
    if free < num_bytes:
        raise UserError(
            f"{output}: needs about {num_bytes / 1e6:.2f} MB and has {free / 1e6:.2f} MB free: choose another --output"
        )


def write_image(path: Path, image: Image.Image) -> None:
    """Write a PNG whole."""
    write_atomically(path, png(image))


def png(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a PNG, with text entries."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def indexed_image(labels: np.ndarray, codec: SegmentationCodec) -> Image.Image:
    """Label ids (H, W) as an indexed image with the palette of the codec; as 16-bit grey where an id is beyond 255."""
    if max(int(labels.max()), int(codec.ids.max())) > 255:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8)).convert("P")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[codec.ids.numpy()] = codec.colors
    image.putpalette(palette.ravel().tolist())
    return image


def colored(name: str, array: np.ndarray, modality: Modality) -> np.ndarray:
    """Picture (H, W, 3) uint8 of a raw array as the pipeline returns it."""
    codec = build_codec(modality)
    if modality.codec == "depth":
        return color_depth(array, codec.space)
    if modality.codec == "normal":
        return color_normal(array)
    if modality.codec == "segmentation":
        return color_segmentation(array, codec)
    return array


def sample_files(sample: Sample, modalities: Mapping[str, Modality]) -> dict[str, bytes]:
    """All files of a sample, by name."""
    files: dict[str, bytes] = {}
    metadata = dict(sample.request)
    for name, array in sample.arrays.items():
        modality, codec = modalities[name], build_codec(modalities[name])
        if modality.codec == "rgb":
            files[f"{name}.png"] = png(Image.fromarray(array))
        elif modality.codec == "depth":
            relative = array.astype(np.float32)
            files[f"{name}.npy"] = _npy(relative)
            units = (np.clip(relative, 0, 1) * 65535).round().astype(np.uint16)
            files[f"{name}.png"] = png(Image.fromarray(units), {DEPTH_SPACE_KEY: codec.space})
            files[f"{name}_vis.png"] = png(Image.fromarray(colored(name, array, modality)))
            metadata["depth_space"] = codec.space
        elif modality.codec == "normal":
            files[f"{name}.npy"] = _npy(array.astype(np.float32))
            files[f"{name}.png"] = png(Image.fromarray(colored(name, array, modality)))
        else:
            files[f"{name}.png"] = png(indexed_image(array, codec))
            present = set(np.unique(array).tolist())
            rows = zip(codec.ids.tolist(), codec.names, codec.colors.tolist(), strict=True)
            metadata["segmentation_classes"] = [{"id": i, "name": n, "color": c} for i, n, c in rows if i in present]
    pictures = [colored(name, array, modalities[name]) for name, array in sample.arrays.items()]
    files["grid.png"] = png(labelled_grid([pictures], [], list(sample.arrays)))
    metadata["versions"] = versions()
    files[METADATA] = json_bytes(metadata)
    return files


class SampleWriter:
    """Writes samples into ``<output>/<name>/``.

    Args:
        output: the folder; made if missing.
        modalities: the model's records.
        overwrite: replace samples of other requests too.

    Raises:
        UserError: the folder can't be written or has no room.
    """

    def __init__(self, output: Path, modalities: Mapping[str, Modality], overwrite: bool = False) -> None:
        self.output, self.modalities, self.overwrite = output, modalities, overwrite
        prepare_folder(output)

    def check(self, requests: Mapping[str, Mapping[str, Any]], num_pixels: int) -> None:
        """Find out before the computation whether samples of these names can be written. ``num_pixels`` of all together.

        Raises:
            UserError: a folder that holds something else, or another request's result; a full disk.
        """
        prepare_folder(self.output, num_pixels * BYTES_PER_PIXEL)
        # What is there is compared with what is asked for, not the other way round: a million may be asked for.
        for entry in os.scandir(self.output):
            if (request := requests.get(entry.name)) is not None:
                self._refuse_loss(self.output / entry.name, request)

    def _refuse_loss(self, folder: Path, request: Mapping[str, Any]) -> None:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"{folder}: is a file; the sample needs a folder of that name: choose another --output")
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in SAMPLE_FILES)
        if foreign:
            raise UserError(f"{folder}: holds {foreign[0]!r}, which is no file of a sample: choose another --output")
        if self.overwrite or not any(folder.iterdir()):
            return
        try:
            found = read_object(folder / METADATA)
        except UserError:
            found = None
        Request(request, ignored=["device"], optional=["class_id"]).refuse_other(
            found, folder, "a result", "give --overwrite or another --output"
        )

    def write(self, sample: Sample) -> Path:
        """Write one sample; returns its folder. Raises UserError where the disk does not take it; nothing half-written stays."""
        folder, files = self.output / sample.name, sample_files(sample, self.modalities)
        self._refuse_loss(folder, sample.request)
        with writing_folder(folder) as temporary:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
        return folder


def resize_output(array: np.ndarray, modality: Modality, size: tuple[int, int]) -> np.ndarray:
    """Resize an output to (height, width): labels by the nearest pixel, all else bilinear; normals stay of unit length."""
    if array.shape[:2] == tuple(size):
        return array
    if modality.codec == "segmentation":
        rows = ((np.arange(size[0]) + 0.5) * array.shape[0] / size[0]).astype(int)
        columns = ((np.arange(size[1]) + 0.5) * array.shape[1] / size[1]).astype(int)
        return array[rows[:, None], columns[None, :]]
    if array.dtype == np.uint8:
        return np.asarray(Image.fromarray(array).resize(size[::-1], Image.Resampling.BILINEAR))
    planes = np.atleast_3d(array)
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(planes[..., c])).resize(size[::-1], Image.Resampling.BILINEAR))
        for c in range(planes.shape[-1])
    ]
    if modality.codec != "normal":
        return resized[0]
    vectors = np.stack(resized, axis=-1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
