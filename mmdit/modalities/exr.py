"""OpenEXR files, through the library of that name (extra ``exr``)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError

_DEPTH_NAMES = ("Z", "depth", "Depth", "Y", "V", "R")
_VECTOR_NAMES = (("R", "G", "B"), ("X", "Y", "Z"), ("x", "y", "z"))


def read_exr(path: Path, channels: int | None) -> tuple[np.ndarray, dict[str, str]]:
    """Read a map (H, W), or (H, W, channels) where ``channels`` is 3, as the file's type of numbers, and its text entries.

    A map is the channel Z, depth, Y, V or R, or the only one; vectors are R, G, B or X, Y, Z. Layers' names before the
    last dot are passed over.

    Raises:
        UserError: the library is missing, the file is damaged, or has no such channels.
    """
    OpenEXR = _library(f"{path}: ")
    from mmdit.modalities.stored import check_pixels

    try:
        with OpenEXR.File(str(path), separate_channels=True, header_only=True) as file:
            first, last = file.header()["dataWindow"]
            height, width = (int(last[i]) - int(first[i]) + 1 for i in (1, 0))
            check_pixels(path, height, width)
        with OpenEXR.File(str(path), separate_channels=True) as file:
            text = {key: value for key, value in file.header().items() if isinstance(value, str)}
            found = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except UserError:
        raise
    except Exception as error:  # the library raises anything for a damaged file
        raise UserError(f"{path}: not a readable OpenEXR file: {' '.join(str(error).split())[:200]}") from None
    return _choose(path, found, channels), text


def need_exr(option: str) -> None:
    """Raise UserError, in the name of an option, where the library is missing."""
    _library(f"{option}: ")


def has_exr() -> bool:
    """Whether the library is there."""
    try:
        _library("")
    except UserError:
        return False
    return True


def exr_bytes(values: np.ndarray, text: Mapping[str, str]) -> bytes:
    """Numbers as an OpenEXR file, which ``read_exr`` reads.

    Args:
        values: a map (H, W), which becomes the channel Y, or vectors (H, W, 3), which become R, G, B.
        text: further entries of the header.

    Raises:
        UserError: the library is missing.
    """
    OpenEXR = _library("")
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **text}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.exr"
        with OpenEXR.File(header, {"Y" if values.ndim == 2 else "RGB": np.ascontiguousarray(values)}) as file:
            file.write(str(path))
        return path.read_bytes()


def _library(where: str) -> Any:
    try:
        import OpenEXR
    except ImportError:
        raise UserError(f"{where}OpenEXR files need a library: pip install 'multimodal-dit[exr]'") from None
    return OpenEXR


def _choose(path: Path, found: dict[str, Any], channels: int | None) -> np.ndarray:
    by_name = {name.rpartition(".")[2]: pixels for name, pixels in found.items()}
    if channels is None:
        names = [name for name in _DEPTH_NAMES if name in by_name] or (list(by_name) if len(by_name) == 1 else [])
        if names:
            return np.asarray(by_name[names[0]])
    for triple in _VECTOR_NAMES if channels == 3 else ():
        if all(name in by_name for name in triple):
            return np.stack([by_name[name] for name in triple], axis=-1)
    wanted = "Z or one channel" if channels is None else "R, G, B or X, Y, Z"
    raise UserError(f"{path}: has the channels {', '.join(sorted(found)) or 'none'}: give {wanted}")
