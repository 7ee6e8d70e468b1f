"""Results on the server: the files that visitors download, and the arrays that the page shows again."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError
from mmdit.modalities import Codec
from mmdit.modalities.files import png
from mmdit.names import METADATA
from mmdit.storage.files import writing_folder
from mmdit.storage.json_object import json_bytes
from mmdit.storage.versions import versions

Arrays = dict[str, np.ndarray]
_ARRAYS, _SHOWN, _PREVIEWS = "arrays.npz", "shown", "previews"
_PREVIEW_SECONDS = 300.0  # a page shows each for a moment
_SMALLEST_SHOWN = 256


class ResultStore:
    """Keeps the results of requests for a while, each in a folder whose name can't be guessed and is never used again.

    A page shows files of these folders as they lie there: gradio's own cache, which goes by content, writes a file again while
    another visitor reads it.

    Args:
        folder: of all results; made if missing.
        codecs: of the model's modalities.
        keep_seconds: age at which a result goes.
        keep_results: how many stay at most; the oldest go.
        exr: store maps of numbers as OpenEXR too, which needs its library.
    """

    def __init__(
        self,
        folder: Path,
        codecs: Mapping[str, Codec],
        keep_seconds: float = 3600,
        keep_results: int = 500,
        *,
        exr: bool = False,
    ) -> None:
        self.folder, self.codecs, self.exr = folder, codecs, exr
        self.keep_seconds, self.keep_results = keep_seconds, keep_results
        self._versions = versions()
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, samples: Sequence[Arrays], records: Sequence[Mapping[str, Any]]) -> str:
        """Store the samples of a request, and what made each; returns the result's name."""
        self.clean()
        name = secrets.token_hex(16)
        with writing_folder(self.folder / name) as temporary:
            for index, (arrays, record) in enumerate(zip(samples, records, strict=True)):
                (temporary / str(index)).mkdir()
                for file_name, content in self._files(arrays, record).items():
                    (temporary / str(index) / file_name).write_bytes(content)
                self._draw(temporary / str(index) / _SHOWN, arrays)
                np.savez(temporary / str(index) / _ARRAYS, **arrays)  # type: ignore[arg-type]
        return name

    def draw(self, arrays: Arrays) -> dict[str, str]:
        """Draw raw arrays that are no result yet; returns the path of each picture."""
        folder = self.folder / _PREVIEWS / secrets.token_hex(16)
        self._draw(folder, arrays)
        return {name: str(folder / f"{name}.png") for name in arrays}

    def _draw(self, folder: Path, arrays: Arrays) -> None:
        folder.mkdir(parents=True)
        for name, array in arrays.items():
            (folder / f"{name}.png").write_bytes(png(enlarged(self.codecs[name].picture(array))))

    def _files(self, arrays: Arrays, record: Mapping[str, Any]) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        metadata = dict(record)
        for name, array in arrays.items():
            files |= self.codecs[name].files(array)
            files |= self.codecs[name].exr_files(array) if self.exr else {}
            metadata |= self.codecs[name].metadata(array)
        return {**files, METADATA: json_bytes({**metadata, "versions": self._versions})}

    def arrays(self, name: str, index: int = 0) -> Arrays:
        """Raw arrays of a sample, by modality. Raises UserError for a result that is gone."""
        with np.load(self.sample(name, index) / _ARRAYS, allow_pickle=False) as stored:
            return {key: stored[key] for key in self.codecs if key in stored.files}

    def sample(self, name: str, index: int = 0) -> Path:
        """Folder of a sample. Raises UserError for a result that is gone."""
        folder = self.folder / name / str(index)
        if not re.fullmatch("[0-9a-f]{32}", name) or not (folder / _ARRAYS).is_file():
            raise UserError("this result is no longer kept: make it again")
        return folder

    def files(self, name: str, index: int = 0) -> list[str]:
        """Paths of what a visitor may download."""
        return [str(path) for path in sorted(self.sample(name, index).iterdir()) if path.name not in (_ARRAYS, _SHOWN)]

    def pictures(self, name: str, index: int = 0) -> dict[str, str]:
        """Path of the picture of each modality of a sample; small ones are enlarged by a whole factor."""
        folder = self.sample(name, index) / _SHOWN
        return {modality: str(folder / f"{modality}.png") for modality in self.codecs}

    def clean(self) -> None:
        """Remove results that are too old or too many, and old previews, of which a request has many."""
        _remove(self.folder, self.keep_seconds, self.keep_results)
        _remove(self.folder / _PREVIEWS, min(self.keep_seconds, _PREVIEW_SECONDS))


def _remove(folder: Path, seconds: float, most: int | None = None) -> None:
    """Remove folders in a folder that are older than this, and all but the newest ``most``."""
    entries = [entry for entry in folder.glob("[!.]*") if entry.is_dir() and entry.name != _PREVIEWS]
    entries.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    oldest = time.time() - seconds
    for position, entry in enumerate(entries):
        if (most is not None and position >= most) or entry.stat().st_mtime < oldest:
            shutil.rmtree(entry, ignore_errors=True)


def enlarged(picture: np.ndarray, smallest: int = _SMALLEST_SHOWN) -> np.ndarray:
    """Enlarge a small picture (H, W, 3) by a whole factor, so that a browser does not blur its pixels."""
    factor = max(1, -(-smallest // max(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
