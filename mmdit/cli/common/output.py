"""Samples as folders: every file of a sample appears at once, and nothing that is there is lost silently.

A folder is written under a hidden name and renamed. One that exists is replaced when it came from the same request; where
it came from another one, the run is refused before it starts, unless ``overwrite`` is set; a folder that holds
anything else is never touched.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit.cli.common.pictures import labelled_grid
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codecs
from mmdit.modalities.files import png
from mmdit.modalities.modality import Modality

VERSIONED = ("multimodal-dit", "torch", "diffusers", "numpy", "pillow")
METADATA = "metadata.json"
GRID = "grid.png"
_GRID_BYTES = 3  # per pixel and modality; PNG seldom needs all of it
_PROBE_BYTES = 65536


@dataclass(frozen=True)
class Sample:
    """One result: raw arrays per modality as the pipeline returns them, and the request that made it, as JSON values."""

    name: str
    arrays: Mapping[str, np.ndarray]
    request: Mapping[str, Any]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the system's errors about writing below ``path`` into one that names it and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{path}: {error.strerror}: free some space or choose another --output") from error
        where = error.filename or path
        raise UserError(
            f"{path}: cannot be written ({where}: {error.strerror or error}): choose another --output"
        ) from error


def prepare_folder(output: Path, num_bytes: int = 0) -> None:
    """Create a folder and prove that it can be written and has room for ``num_bytes``.

    Raises:
        UserError: it is a file, can't be written, or its disk is full.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; --output is a folder")
    with _writing(output):
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


def write_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it. Raises UserError where that fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _writing(path):
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write JSON as ``write_file`` does; NaN and infinity, which JSON lacks, become null."""
    from mmdit.metrics.evaluate import json_safe

    write_file(path, _json(json_safe(values)))


def _json(values: Any) -> bytes:
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # file names need not be UTF-8; JSON has this escape


def write_image(path: Path, image: Image.Image) -> None:
    """Write a PNG as ``write_file`` does."""
    write_file(path, png(image))


def sample_files(sample: Sample, modalities: Mapping[str, Modality]) -> dict[str, bytes]:
    """All files of a sample, by name."""
    files: dict[str, bytes] = {}
    metadata = dict(sample.request)
    codecs = build_codecs({name: modalities[name] for name in sample.arrays})
    for name, array in sample.arrays.items():
        files |= codecs[name].files(array)
        metadata |= codecs[name].metadata(array)
    pictures = [codecs[name].picture(array) for name, array in sample.arrays.items()]
    files[GRID] = png(labelled_grid([pictures], [], list(sample.arrays)))
    metadata["versions"] = versions()
    files[METADATA] = _json(metadata)
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
        codecs = build_codecs({**MODALITIES, **modalities})
        self.file_names = {GRID, METADATA}.union(*(codec.file_names() for codec in codecs.values()))
        self.bytes_per_pixel = sum(codecs[name].bytes_per_pixel + _GRID_BYTES for name in modalities)
        prepare_folder(output)

    def check(self, requests: Mapping[str, Mapping[str, Any]], num_pixels: int) -> None:
        """Find out before the computation whether samples of these names can be written. ``num_pixels`` of all together.

        Raises:
            UserError: a folder that holds something else, or another request's result; a full disk.
        """
        prepare_folder(self.output, num_pixels * self.bytes_per_pixel)
        # What is there is compared with what is asked for, not the other way round: a million may be asked for.
        for entry in os.scandir(self.output):
            if (request := requests.get(entry.name)) is not None:
                self._refuse_loss(self.output / entry.name, request)

    def _refuse_loss(self, folder: Path, request: Mapping[str, Any]) -> None:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"{folder}: is a file; the sample needs a folder of that name: choose another --output")
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in self.file_names)
        if foreign:
            raise UserError(f"{folder}: holds {foreign[0]!r}, which is no file of a sample: choose another --output")
        if self.overwrite or not any(folder.iterdir()):
            return
        try:
            found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        wanted = json.loads(json.dumps(request))
        different = [key for key, value in wanted.items() if key != "device" and found.get(key) != value]
        if different:
            changes = ", ".join(f"{key} was {found.get(key)!r}, now {wanted[key]!r}" for key in different)
            raise UserError(
                f"{folder}: holds a result of another request ({changes}): give --overwrite or another --output"
            )

    def write(self, sample: Sample) -> Path:
        """Write one sample; returns its folder. Raises UserError where the disk does not take it; nothing half-written stays."""
        folder, temporary = self.output / sample.name, self.output / f".{sample.name}.tmp"
        old = self.output / f".{sample.name}.old"
        files = sample_files(sample, self.modalities)
        self._refuse_loss(folder, sample.request)
        with _writing(folder):
            _settle(folder, temporary, old)
            try:
                temporary.mkdir()
                for name, content in files.items():
                    (temporary / name).write_bytes(content)
                if folder.exists():
                    folder.rename(old)
                temporary.rename(folder)
            finally:
                _settle(folder, temporary, old)
        return folder


def _settle(folder: Path, temporary: Path, old: Path) -> None:
    """Leave either the old or the new folder, whole, whatever was interrupted."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
