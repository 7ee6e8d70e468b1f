"""What the user gives: images by path or folder, and the file of each given modality."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.cli.common.model import note
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, Codec, Reading
from mmdit.modalities.codec import NOTHING
from mmdit.modalities.rgb import read_picture
from mmdit.storage.listing import IMAGE_SUFFIXES, list_folders, list_images, visible
from mmdit.storage.names import number_repeats, safe_name, text_of
from mmdit.video.file import VideoFile
from mmdit.video.folder import FRAME_RATE, FrameFolder
from mmdit.video.frames import Video
from mmdit.video.kinds import VIDEO_SUFFIXES, is_video


@dataclass(frozen=True)
class ImageFile:
    """An RGB input: its path, the name of its results, and whether the user named the file itself (not its folder)."""

    path: Path
    name: str
    explicit: bool


def source_name(path: Path) -> str:
    """Name a condition's source: the file's stem, or its folder where the stem only says the modality (torus_0/depth.npy)."""
    stem = path.stem if path.stem not in MODALITIES else real_path(path).parent.name
    return safe_name(text_of(stem))


def find_images(paths: Sequence[str | Path], beside: Sequence[Path] = ()) -> list[ImageFile]:
    """List the images of files and folders (not of their subfolders, which is noted), each with its own name.

    A name is the file's stem; files that share one are told apart by their folder's name, then by their suffix, then by a number.
    ``beside``: files that get names too, and share none.

    Raises:
        UserError: a path that does not exist, a URL, or a folder without images.
    """
    found: list[tuple[Path, bool]] = []
    for path in map(_local, paths):
        if path.is_dir():
            inside = [path / name for name in list_images(path)]
            if not inside:
                kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
                video = next((p for p in visible(path.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES), None)
                hint = f"name its videos, such as {video}" if video else f"give a folder of {kinds}"
                raise UserError(f"{path}: the folder holds no image (subfolders are not searched); {hint}")
            found += [(p, False) for p in inside]
            deeper = next((path / name for name in list_folders(path) if _holds_images(path / name)), None)
            if deeper is not None:
                note(
                    f"{path}: images of subfolders are not read; name the folders whose images you want, such as {deeper}"
                )
        elif path.is_file():
            found.append((path, True))
        elif path.exists():
            raise UserError(f"{path}: is a pipe, a socket or a device; give an image or a folder")
        else:
            raise UserError(f"{path}: no such image or folder")
    unique = {real_path(path): (path, explicit) for path, explicit in found}
    files = list(unique.values())
    names = tell_apart([*(path for path, _ in files), *beside])[: len(files)]
    return [ImageFile(path, name, explicit) for (path, explicit), name in zip(files, names, strict=True)]


def _holds_images(folder: Path) -> bool:
    try:
        return bool(list_images(folder))
    except OSError:  # not ours to read
        return False


def find_videos(
    paths: Sequence[str | Path], *, folders: bool, fps: float | None
) -> tuple[dict[Path, Video], list[str]]:
    """Find the videos among files and folders; returns them by path, and the paths that are none.

    Args:
        paths: what the user gave.
        folders: whether each folder is a video, its images the frames.
        fps: frames per second of those; None = the usual rate.

    Raises:
        UserError: a video that can't be read, or ``fps`` without a folder that is one.
    """
    found: dict[Path, Path] = {}
    rest: list[str] = []
    for path in map(_local, paths):
        if (folders and path.is_dir()) or (path.is_file() and is_video(path)):
            found.setdefault(real_path(path), path)
        else:
            rest.append(str(path))
    if fps is not None and not any(path.is_dir() for path in found.values()):
        raise UserError(
            f"--fps is {fps:g}, and no folder of frames is a video: give --video with a folder, or leave it out"
        )
    rate = FRAME_RATE if fps is None else fps
    return {path: FrameFolder(path, rate) if path.is_dir() else VideoFile(path) for path in found.values()}, rest


def _local(path: str | Path) -> Path:
    """Raises UserError for a URL, of which ``Path`` would drop a slash, and for nothing, which to ``Path`` is this folder."""
    if not str(path):
        raise UserError("an empty path is given: give an image or a folder; '.' is this folder")
    if "://" in str(path):
        raise UserError(f"{path}: is a URL: download it, and give the file")
    return Path(path)


def real_path(path: Path) -> Path:
    """Where a path leads; links in a circle are left as they are, where ``Path.resolve`` fails before Python 3.13."""
    return Path(os.path.realpath(path))


def tell_apart(paths: Sequence[Path]) -> list[str]:
    """A name for each file or folder: its stem; those that share one by their folder's name, their suffix, a number."""
    names = [safe_name(text_of(path.stem)) for path in paths]
    more_specific = (
        lambda path: safe_name(text_of(f"{real_path(path).parent.name}_{path.stem}")),
        lambda path: safe_name(text_of(f"{real_path(path).parent.name}_{path.stem}_{path.suffix[1:]}")),
    )
    for rename in more_specific:
        counts = Counter(name.casefold() for name in names)  # some file systems ignore case
        names = [rename(path) if counts[name.casefold()] > 1 else name for path, name in zip(paths, names, strict=True)]
    return number_repeats(names)


def read_sizes(files: Sequence[ImageFile]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(height, width) by name of every image that can be read, and what is wrong with those that can't, which is noted.

    Raises:
        UserError: a bad file that the user named, or no good file at all.
    """
    sizes, bad = {}, []
    for file in files:
        try:
            height, width = read_picture(file.path).shape[:2]
            sizes[file.name] = (height, width)
        except UserError as error:
            if file.explicit or len(files) == 1:
                raise
            bad.append(str(error))
    if not sizes:
        raise UserError(f"none of the {len(files)} images can be read: {bad[0]}")
    for reason in bad:
        note(f"left out: {reason}")
    return sizes, bad


def refuse_left_out(bad: Sequence[str], count: int, output: Path) -> None:
    """Raise UserError at the end of a run where some of ``count`` images, whose faults these are, were left out."""
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(f"{len(bad)} of {count} images left out: {bad[0]}{more}; the others are in {output}")


def read_condition(path: Path, codec: Codec, options: Mapping[str, Any] = NOTHING) -> Reading:
    """Read the file of one given modality.

    Args:
        path: what the codec reads. rgb: any image; depth: ``.npy``, EXR, or a grey image of 8, 16 or 32 bits; normal:
            ``.npy`` or an 8-bit RGB image, (n + 1) / 2 x 255; segmentation: an image of label ids (indexed, or grey).
        codec: of the modality.
        options: how it is read, such as ``depth_values``; see the codecs.

    Raises:
        UserError: an unreadable file, one of another kind of image, NaN (with their number), or unknown labels.
    """
    reading = codec.read(path, options)
    for reason in codec.check_given(reading):
        raise UserError(f"{path}: {reason}")
    return reading
