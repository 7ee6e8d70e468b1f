"""What the user gives: images by path or folder, and conditions of every modality, as raw arrays.

A modality's raw array is what its codec reads: rgb (H, W, 3) uint8, depth (H, W) float32, normal (H, W, 3) float32 unit
vectors in the camera frame, segmentation (H, W) int64 label ids.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.codecs import DepthCodec, build_codec
from mmdit.modalities.modality import MODALITIES, Modality
from mmdit.modalities.raw import load_raw, load_rgb
from mmdit.storage.json_object import read_object
from mmdit.storage.listing import IMAGE_SUFFIXES, list_images
from mmdit.storage.names import number_repeats, safe_name, text_of

# Written into our 16-bit depth.png, so that a relative map is not taken for metres wherever the file is moved.
DEPTH_SPACE_KEY = "mmdit_depth_space"
DEPTH_VALUES = ("auto", "relative", "metric")


@dataclass(frozen=True)
class ImageFile:
    """An RGB input: its path, the name of its results, and whether the user named the file itself (not its folder)."""

    path: Path
    name: str
    explicit: bool


@dataclass(frozen=True)
class Condition:
    """A given modality: the raw array that the pipeline takes, where it came from, and how the values were read."""

    array: np.ndarray
    path: Path
    note: str | None = None


def source_name(path: Path) -> str:
    """Name a condition's source: the file's stem, or its folder where the stem only says the modality (torus_0/depth.npy)."""
    stem = path.stem if path.stem not in MODALITIES else path.resolve().parent.name
    return safe_name(text_of(stem))


def find_images(paths: Sequence[str | Path]) -> list[ImageFile]:
    """List the images of files and folders (not of their subfolders), each with a name of its own.

    A name is the file's stem; files that share one are told apart by their folder's name, then by their suffix, then by a number.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    found: list[tuple[Path, bool]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [path / name for name in list_images(path)]
            if not inside:
                kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
                raise UserError(
                    f"{path}: the folder holds no image (subfolders are not searched); give a folder of {kinds}"
                )
            found += [(p, False) for p in inside]
        elif path.is_file():
            found.append((path, True))
        elif path.exists():
            raise UserError(f"{path}: is a pipe, a socket or a device; give an image or a folder")
        else:
            raise UserError(f"{path}: no such image or folder")
    unique = {path.resolve(): (path, explicit) for path, explicit in found}
    files = list(unique.values())
    names = _tell_apart([path for path, _ in files])
    return [ImageFile(path, name, explicit) for (path, explicit), name in zip(files, names, strict=True)]


def _tell_apart(paths: Sequence[Path]) -> list[str]:
    names = [safe_name(text_of(path.stem)) for path in paths]
    more_specific = (
        lambda path: safe_name(text_of(f"{path.resolve().parent.name}_{path.stem}")),
        lambda path: safe_name(text_of(f"{path.resolve().parent.name}_{path.stem}_{path.suffix[1:]}")),
    )
    for rename in more_specific:
        counts = Counter(name.casefold() for name in names)  # some file systems ignore case
        names = [rename(path) if counts[name.casefold()] > 1 else name for path, name in zip(paths, names, strict=True)]
    return number_repeats(names)


def read_sizes(files: Sequence[ImageFile]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(height, width) by name of every image that can be read, and what is wrong with those that can't.

    Raises:
        UserError: a bad file that the user named, or no good file at all.
    """
    sizes, bad = {}, []
    for file in files:
        try:
            height, width = load_rgb(file.path).shape[:2]
            sizes[file.name] = (height, width)
        except UserError as error:
            if file.explicit or len(files) == 1:
                raise
            bad.append(str(error))
    if not sizes:
        raise UserError(f"none of the {len(files)} images can be read: {bad[0]}")
    return sizes, bad


def read_condition(path: Path, modality: Modality, depth_values: str = "auto") -> Condition:
    """Read the file of one given modality.

    Args:
        path: rgb: any image; depth: ``.npy``, or a grey image of 8 or 16 bits; normal: ``.npy`` or an 8-bit RGB image,
            (n + 1) / 2 x 255; segmentation: an image of label ids (indexed, or grey of 8 or 16 bits).
        modality: what the model takes.
        depth_values: "metric" (distances, any unit, 0 = invalid), "relative" (the model's own space, any scale and
            shift, as in our depth.npy and depth.png), or "auto": our own files are relative, datasets' are metric; of
            others, ``.npy`` within [0, 1] and 8-bit images are taken as relative, the rest as metric.

    Returns:
        Depth is relative, float32 in [0, 1], in the model's space.

    Raises:
        UserError: an unreadable file, one of another kind of image, NaN (with their number), or unknown labels.
    """
    note = None
    if modality.codec == "depth":
        array, note = _read_depth(path, modality, depth_values)
    else:
        array = load_raw(path, modality)
        _refuse_non_finite(path, array)
        _naming(path, build_codec(modality).encode, array)
    return Condition(array, path, note)


def _naming(path: Path, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call, and put the file's name before what is wrong with its values."""
    try:
        return function(*args, **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _refuse_non_finite(path: Path, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        pixels = ~np.isfinite(array).reshape(*array.shape[:2], -1).all(axis=-1)
        raise UserError(
            f"{path}: {int(pixels.sum())} of {pixels.size} pixels are NaN or infinite: fill them, or mark them invalid with 0"
        )


def _read_depth(path: Path, modality: Modality, depth_values: str) -> tuple[np.ndarray, str | None]:
    codec = build_codec(modality)
    assert isinstance(codec, DepthCodec)
    kind, space, why = _depth_kind(path) if path.is_file() else ("metric", None, None)
    values = load_raw(path, modality, depth_scale=1.0)
    _refuse_non_finite(path, values)
    if kind == "unknown":
        kind = "relative" if path.suffix == ".npy" and values.min() >= 0 and values.max() <= 1 else "metric"
    if depth_values != "auto":
        kind, why = depth_values, None
    if kind == "relative" and space is not None and space != codec.space:
        raise UserError(
            f"{path}: holds relative {space}, this model takes relative {codec.space}: give depth in metres"
        )
    if kind == "metric" and (negative := int((values < 0).sum())):
        raise UserError(
            f"{path}: {negative} of {values.size} pixels are negative: give distances, 0 = invalid, or --depth_values relative"
        )
    encoded = _naming(path, codec.encode, values, relative=kind == "relative")
    read_as = f"relative {codec.space}" if kind == "relative" else "distances (larger = farther, 0 = invalid)"
    note = None if why or depth_values != "auto" else f"{path}: read as {read_as}; --depth_values can say otherwise"
    return ((encoded[0] + 1) / 2).clamp(0, 1).numpy(), note


def _depth_kind(path: Path) -> tuple[str, str | None, str | None]:
    """("relative" | "metric" | "unknown", the space of a relative map if known, where this is known from)."""
    beside = path.parent / "metadata.json"
    if path.name in ("depth.npy", "depth.png") and beside.is_file():
        with suppress(UserError):
            return "relative", read_object(beside).get("depth_space"), "metadata.json"
    if path.resolve().parent.name == "depth" and (path.resolve().parents[2] / "dataset.json").is_file():
        return "metric", None, "dataset.json"
    if path.suffix == ".npy":
        return "unknown", None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                space = image.info.get(DEPTH_SPACE_KEY)
                return ("relative", space, "the file") if space or image.mode == "L" else ("metric", None, None)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "metric", None, None  # load_raw says what is wrong with it
