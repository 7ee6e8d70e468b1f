"""Samples as folders: every file of a sample appears at once, and nothing that is there is lost silently.

A folder is written under a hidden name and renamed. One that exists is replaced when it came from the same request, and
keeps what this run does not write, such as a mesh; where it came from another one, the run is refused before it starts, unless
``overwrite`` is set; a folder that holds anything else is never touched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit.cli.common.model import note
from mmdit.cli.common.pictures import labelled_grid
from mmdit.data.writer import refuse_foreign
from mmdit.errors import UserError
from mmdit.geometry.sample_folder import MESH, POINTS
from mmdit.modalities import MODALITIES, build_codecs
from mmdit.modalities.files import npy, png
from mmdit.modalities.modality import Modality
from mmdit.modalities.pictures import uncertainty_picture
from mmdit.names import METADATA
from mmdit.storage.files import write_atomically, writing, writing_folder
from mmdit.storage.json_object import json_bytes, read_object
from mmdit.storage.requests import Request
from mmdit.storage.versions import versions

GRID = "grid.png"
_EXR_BYTES = 4  # per pixel and channel, at most
_GRID_BYTES = 3  # per pixel and modality; PNG seldom needs all of it
_PROBE_BYTES = 65536


@dataclass(frozen=True)
class Sample:
    """One result.

    Args:
        name: of its folder.
        arrays: raw arrays per modality as the pipeline returns them.
        request: what made it, as JSON values.
        uncertainty: modality -> (H, W) float32, where an ensemble disagrees.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    request: Mapping[str, Any]
    uncertainty: Mapping[str, np.ndarray] = field(default_factory=dict)


def prepare_folder(output: Path, num_bytes: int = 0) -> None:
    """Create a folder and prove that it can be written and has room for ``num_bytes``.

    Raises:
        UserError: it is a file, a dataset or latents, can't be written, or its disk is full.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; --output is a folder")
    refuse_foreign(output)
    _prove(output, num_bytes)


def prepare_file(output: Path, option: str = "--output") -> None:
    """Create the folder of a file that ``option`` names, and prove that it can be written. Raises UserError where it can't be."""
    there = next(folder for folder in output.absolute().parents if folder.exists())
    if not there.is_dir():
        raise UserError(f"{option} {output}: {there.name} in its path is a file: give a path through folders")
    _prove(output.parent)


def _prove(output: Path, num_bytes: int = 0) -> None:
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


def sample_files(sample: Sample, modalities: Mapping[str, Modality], exr: bool = False) -> dict[str, bytes]:
    """All files of a sample, by name; with ``exr`` OpenEXR too. Raises UserError where that needs a library."""
    files: dict[str, bytes] = {}
    metadata = dict(sample.request)
    codecs = build_codecs({name: modalities[name] for name in sample.arrays})
    for name, array in sample.arrays.items():
        files |= codecs[name].files(array)
        files |= codecs[name].exr_files(array) if exr else {}
        metadata |= codecs[name].metadata(array)
    for name, array in sample.uncertainty.items():
        npy_name, png_name = _uncertainty_names(name)
        files |= {npy_name: npy(array.astype(np.float32)), png_name: png(uncertainty_picture(array))}
    pictures = [codecs[name].picture(array) for name, array in sample.arrays.items()]
    files[GRID] = png(labelled_grid([pictures], [], list(sample.arrays)))
    metadata["versions"] = versions()
    files[METADATA] = json_bytes(metadata)
    return files


def _uncertainty_names(name: str) -> tuple[str, str]:
    return f"{name}_uncertainty.npy", f"{name}_uncertainty.png"


class SampleWriter:
    """Writes samples into ``<output>/<name>/``.

    Args:
        output: the folder; made if missing.
        modalities: the model's records.
        overwrite: replace samples of other requests too.
        exr: write maps of numbers as OpenEXR too.

    Raises:
        UserError: the folder can't be written or has no room.
    """

    def __init__(
        self, output: Path, modalities: Mapping[str, Modality], overwrite: bool = False, exr: bool = False
    ) -> None:
        self.output, self.modalities, self.overwrite, self.exr = output, modalities, overwrite, exr
        codecs = build_codecs({**MODALITIES, **modalities})
        self.file_names = {GRID, METADATA, MESH, POINTS}.union(*(codec.file_names() for codec in codecs.values()))
        self.file_names |= {file for name in codecs for file in _uncertainty_names(name)}
        self.file_names |= {codec.exr_name for codec in codecs.values() if codec.exr_name}
        self.bytes_per_pixel = sum(codecs[name].bytes_per_pixel + _GRID_BYTES for name in modalities)
        written = [codecs[name] for name in modalities if exr and codecs[name].exr_name]
        self.exr_names = [name for codec in written if (name := codec.exr_name)]
        self.bytes_per_pixel += _EXR_BYTES * sum(codec.channels or 1 for codec in written)
        prepare_folder(output)

    def check(self, requests: Mapping[str, Mapping[str, Any]], num_pixels: int) -> None:
        """Check before the computation that samples of these names can be written, ``num_pixels`` in all.

        Raises:
            UserError: a folder that holds something else, or another request's result; a full disk.
        """
        prepare_folder(self.output, num_pixels * self.bytes_per_pixel)
        # Walk the folder, not the requests: there may be a million of them.
        for entry in os.scandir(self.output):
            if (request := requests.get(entry.name)) is not None:
                self._refuse_loss(self.output / entry.name, request)

    def _refuse_loss(self, folder: Path, request: Mapping[str, Any]) -> None:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"{folder}: is a file; the sample needs a folder of that name: choose another --output")
        self.refuse_foreign(folder)
        if not self.overwrite and any(folder.iterdir()):
            self.refuse_other(folder, request)

    def refuse_foreign(self, folder: Path) -> None:
        """Raise UserError where a folder holds anything but a sample's files."""
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in self.file_names)
        if foreign:
            raise UserError(f"{folder}: holds {foreign[0]!r}, which is not a sample's file: choose another --output")

    def refuse_other(self, folder: Path, request: Mapping[str, Any]) -> None:
        """Raise UserError where a folder's metadata are not those of the request."""
        remedy = "give --overwrite or another --output"
        _request(request).refuse_other(_found(folder), folder, "a result", remedy)

    def write(self, sample: Sample) -> Path:
        """Write one sample; returns its folder. Raises UserError where the disk does not take it; nothing half-written stays."""
        folder, files = self.output / sample.name, sample_files(sample, self.modalities, self.exr)
        self._refuse_loss(folder, sample.request)
        others = sorted(self.file_names & set(os.listdir(folder)) - files.keys()) if folder.is_dir() else []
        is_same = not others or not _request(sample.request).check(_found(folder))
        with writing_folder(folder) as temporary:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            for name in others if is_same else ():
                shutil.copy2(folder / name, temporary / name)
        if not is_same:
            note(f"{folder}: {', '.join(others)} of the other result, which was overwritten, went with it")
        return folder


def _request(values: Mapping[str, Any]) -> Request:
    return Request(values, ignored=["device"], optional=["class_id", "lora"])


def _found(folder: Path) -> Any:
    """What made a sample that is there; None = it is not known."""
    try:
        return read_object(folder / METADATA)
    except UserError:
        return None
