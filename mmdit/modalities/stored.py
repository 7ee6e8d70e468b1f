"""One file, PIL image or array, opened safely and not yet interpreted: what every codec reads from.

What a file declares is checked before memory is taken for it. Every failure is a UserError that names the file.
"""

from __future__ import annotations

import math
import os
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mmdit.errors import UserError, one_line

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
ORIENTATION_TAG = 0x0112
# Deflate, which PNG uses, shrinks by a factor of 1032 at most.
_DEFLATE_RATIO = 1032
_OF_NUMPY = (torch.float16, torch.float32, torch.float64)  # other floats become the second


@dataclass(frozen=True)
class Stored:
    """Values as they are stored.

    Args:
        where: what messages call it: the path of a file, "" for a value in Python.
        image: a loaded PIL image, or None; array: an array of numbers, or None. One of them is there.
        path: the file, or None.
        text: text entries of an image, or of an EXR file.
        orientation: EXIF's, 1 to 8; 1 = as seen.
    """

    where: str
    image: Image.Image | None = None
    array: np.ndarray | None = None
    path: Path | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    orientation: int = 1

    def error(self, reason: str) -> UserError:
        """Return the error that names what was read."""
        return UserError(f"{self.where}: {reason}" if self.where else reason)


def open_stored(source: Any, channels: int | None = None) -> Stored:
    """Open a path, a PIL image, an array or a tensor.

    Args:
        source: a path may be of an image that Pillow reads, ``.npy``, ``.npz`` of one array, or ``.exr``.
        channels: how many the caller wants, None = a map (H, W); it chooses the channels of an EXR file.

    Raises:
        UserError: a file that is missing, empty, not regular, damaged, too large, or without numbers.
    """
    if isinstance(source, Image.Image):
        return _loaded(source, "", None)
    if isinstance(source, Tensor):
        check_dense(source, "what is to be read")
        return Stored("", array=to_numpy(source.float() if source.is_floating_point() else source))
    if isinstance(source, np.ndarray):
        return Stored("", array=source)
    path = Path(source)
    size = regular_size(path)
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return Stored(str(path), array=_load_array(path, size), path=path)
    if suffix == ".exr":
        from mmdit.modalities.exr import read_exr

        array, text = read_exr(path, channels)
        return Stored(str(path), array=array, path=path, text=text)
    return _open_image(path, size)


def check_dense(tensor: Tensor, what: str = "") -> None:
    """Raise UserError for a tensor that holds no plain numbers; ``what`` it is, for the message, which else begins "is a"."""
    kinds = {
        "nested tensor: give a list": tensor.is_nested,
        "tensor on the meta device, which holds no numbers: load it first": tensor.is_meta,
        "sparse tensor: give tensor.to_dense()": tensor.layout != torch.strided,
        "quantized tensor: give tensor.dequantize()": tensor.is_quantized,
        "tensor of complex numbers: give real ones": tensor.is_complex(),
    }
    if wrong := [kind for kind, is_so in kinds.items() if is_so]:
        raise UserError(f"{what} is a {wrong[0]}".lstrip())


def to_numpy(value: Tensor | np.ndarray, what: str = "") -> np.ndarray:
    """A tensor on any device and of any type as an array; an array stays. Raises UserError like ``check_dense``."""
    if not isinstance(value, Tensor):
        return value
    check_dense(value, what)
    if value.is_floating_point() and value.dtype not in _OF_NUMPY:
        value = value.float()
    return value.detach().cpu().resolve_neg().numpy()


def regular_size(path: Path) -> int:
    """Return the bytes of a regular file. Raises UserError if it is missing, empty, or a folder, FIFO or device."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be opened: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a FIFO, socket or device"
        raise UserError(f"{path}: is {kind}; give a file")
    if found.st_size == 0:
        raise UserError(f"{path}: the file is empty")
    return found.st_size


def check_pixels(where: object, height: int, width: int) -> None:
    """Raise UserError for more pixels than Pillow's limit, which holds for arrays too."""
    if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
        raise UserError(f"{where}: the image has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller first")


def _open_image(path: Path, size: int) -> Stored:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags, and of many pixels, which are refused below
            with Image.open(path) as image:
                _check_declared(image, path, size)
                if image.format == "PNG":
                    image.verify()  # reads the checksums to the end of the file, which decoding does not
            with Image.open(path) as image:
                return _loaded(image, str(path), path)
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: the image has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image that Pillow can read") from None
    except UserError:
        raise
    except Exception as error:  # decoders raise anything for a damaged file
        raise UserError(f"{path}: truncated or damaged image: {one_line(error)}") from None


def _check_declared(image: Image.Image, path: Path, size: int) -> None:
    check_pixels(path, image.height, image.width)
    num_bytes = image.width * image.height * len(image.getbands()) * (1 if image.mode != "1" else 1 / 8)
    ratio = {"PNG": _DEFLATE_RATIO}.get(image.format or "", math.inf)
    if image.format == "PNG" and image.mode in ("L", "P"):
        num_bytes /= 8  # of 1 bit each, at least
    if image.info.get("compression") == "raw":
        ratio = 8  # of 1 bit each, at least
    if num_bytes > ratio * size:
        raise UserError(
            f"{path}: truncated or damaged image: it declares {image.width} x {image.height} pixels in {size} bytes"
        )


def _loaded(image: Image.Image, where: str, path: Path | None) -> Stored:
    try:
        image.load()
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception as error:
        prefix = f"{where}: " if where else ""
        raise UserError(f"{prefix}truncated or damaged image: {one_line(error)}") from None
    if 0 in image.size:
        raise UserError(f"{where or 'the image'}: has no pixels: {image.width} x {image.height}")
    text = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    turned = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    return Stored(where, image=image, path=path, text=text, orientation=turned)


def _load_array(path: Path, size: int) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                if len(members) != 1:
                    raise UserError(f"{path}: holds {len(members)} arrays: give a file of one")
                return read_member(path, archive, members[0], size)
        with path.open("rb") as file:
            _check_header(path, file, size)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise anything for a damaged file
        # numpy calls any text file a pickle, and says how to load it unsafely
        text = one_line(error)
        reason = "it holds no array of numbers" if "pickle" in text or "magic string" in text else text
        raise UserError(f"{path}: not a readable {path.suffix.lower()} array: {reason}") from None


def read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> np.ndarray:
    """Read one array of an ``.npz`` of ``size`` bytes. Raises UserError for what its header declares and can't hold."""
    with archive.open(member) as file:
        _check_header(path, file, min(member.file_size, size * _DEFLATE_RATIO))
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_header(path: Path, file: IO[bytes], size: int) -> None:
    """Judge an array by its header: kind of numbers, and a shape that the file has the bytes for."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise UserError(f"{path}: not a readable .npy array: format {version[0]}.{version[1]}; save numbers with numpy")
    shape, _, dtype = readers[version](file)
    if dtype.kind not in "fiub":
        raise UserError(f"{path}: holds {_kind(dtype)} {shape}; give numbers")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise UserError(f"{path}: truncated or damaged: it declares {dtype} {shape} in {size} bytes")
    check_pixels(path, math.prod(shape[:2]), 1)


def _kind(dtype: np.dtype) -> str:
    kinds = {"O": "objects", "V": "a structured array", "U": "text", "S": "text", "M": "dates", "m": "times"}
    return kinds.get(dtype.kind, str(dtype))
