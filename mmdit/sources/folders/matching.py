"""Folders of aligned files -> samples: the files of each image, matched by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmdit.errors import UserError
from mmdit.modalities import IMAGE, build_codecs, get_modalities
from mmdit.modalities.stored import ARRAY_SUFFIXES
from mmdit.storage.listing import IMAGE_SUFFIXES, list_images
from mmdit.storage.names import text_of

ARRAYS = (*sorted(ARRAY_SUFFIXES), ".exr")


@dataclass(frozen=True)
class BadFile:
    """A file whose sample is not imported, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class MatchedSample:
    """``id``: the image's path in its folder, without the suffix; ``files``: modality -> path, those that are there."""

    id: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Matches:
    """Samples in the order of their names; ``bad``: files that share a name; ``notes``: what has no partner, for the user."""

    samples: tuple[MatchedSample, ...]
    bad: tuple[BadFile, ...]
    notes: tuple[str, ...]


def match_folders(folders: Mapping[str, Path]) -> Matches:
    """Match files by their path in the folder without the suffix; subfolders count, hidden files don't.

    An image need not have a file of each modality: the sample lacks that one. Files without an image are left out.

    Args:
        folders: modality -> folder, RGB among them.

    Raises:
        UserError: no such folder, nothing in it, or a modality none of whose names is an image's.
    """
    found = {name: _files(name, folder) for name, folder in folders.items()}
    bad = [
        BadFile(paths[0], f"{os.path.basename(paths[1])} beside it has the same name: leave one of them in the folder")
        for files in found.values()
        for paths in files.values()
        if len(paths) > 1
    ]
    doubled = {stem for files in found.values() for stem, paths in files.items() if len(paths) > 1}
    images = found[IMAGE]
    notes = []
    for name, files in found.items():
        if not images.keys() & files.keys():
            raise UserError(
                f"--{name} {folders[name]}: none of its names, such as {next(iter(files))!r}, is one of --{IMAGE}'s, such as "
                f"{next(iter(images))!r}: files of one sample have one name, but for the suffix"
            )
        if lacking := [stem for stem in images if stem not in files]:
            notes.append(f"{len(lacking)} of {len(images)} images have no {name}, first {lacking[0]!r}")
        if alone := [stem for stem in files if stem not in images]:
            notes.append(f"--{name}: {len(alone)} files without an image are left out, first {alone[0]!r}")
    samples = (
        MatchedSample(stem, {name: files[stem][0] for name, files in found.items() if stem in files})
        for stem in images
        if stem not in doubled
    )
    return Matches(tuple(samples), tuple(bad), tuple(notes))


def _files(modality: str, folder: Path) -> dict[str, list[str]]:
    """Name without the suffix -> the files of that name."""
    if not folder.is_dir():
        raise UserError(f"--{modality} {folder}: no such folder")
    codec = build_codecs(get_modalities([modality]))[modality]
    suffixes = (*IMAGE_SUFFIXES, *ARRAYS) if codec.array_files else IMAGE_SUFFIXES
    files: dict[str, list[str]] = {}
    for name in list_images(folder, recursive=True, suffixes=suffixes):
        files.setdefault(text_of(os.path.splitext(name)[0]), []).append(f"{folder}/{name}")
    if not files:
        raise UserError(f"--{modality} {folder}: no file of {modality} in it ({', '.join(suffixes)})")
    return files
