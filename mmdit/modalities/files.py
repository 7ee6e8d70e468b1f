"""Arrays as the bytes of files, and whether such files are whole."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

_PNG_END = bytes.fromhex("0000000049454e44ae426082")  # its last chunk


def png(image: Image.Image | np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a PNG, with text entries."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Encode a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def is_whole(path: Path, original: Path | None = None) -> bool:
    """Tell whether a file that was made earlier is there, is not empty and was not cut off; nothing of it is decoded.

    Args:
        path: PNG and ``.npy`` say where they end; of other kinds any that is not empty will do.
        original: the file that it may be a copy of. Then those of other kinds must be as long.
    """
    try:
        size = path.stat().st_size
        if original is not None and size == original.stat().st_size > 0:
            return True
        ends = _ENDS.get(path.suffix.lower())
        return size > 0 and (original is None if ends is None else ends(path))
    except (OSError, ValueError):
        return False


def _png_ends(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-len(_PNG_END), os.SEEK_END)
        return file.read() == _PNG_END


def _npy_ends(path: Path) -> bool:
    np.load(path, mmap_mode="r", allow_pickle=False)  # which compares its length with its header
    return True


_ENDS: dict[str, Callable[[Path], bool]] = {".png": _png_ends, ".npy": _npy_ends}
