"""One file on disk -> the raw array a codec reads. Every failure is a UserError that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmdit.errors import UserError
from mmdit.modalities.modality import Modality

# Pillow's names for one channel of more than 8 bits.
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I")


def load_raw(path: str | Path, modality: Modality, depth_scale: float = 0.001) -> np.ndarray:
    """Read one modality of one sample.

    Args:
        path: an image, or a ``.npy`` array for depth and normals.
        modality: its codec says what the file means.
        depth_scale: metres per unit of a depth image; ``.npy`` depth is in metres as it is.

    Returns:
        rgb: (H, W, 3) uint8, whatever the file's mode (grey, palette, 16-bit, transparent over white);
        depth: (H, W) float32 metres, 0 = invalid; normal: (H, W, 3) float32, about unit length;
        segmentation: (H, W) int64 label ids (of a palette image: the indices).

    Raises:
        UserError: a missing, empty, truncated or non-image file, one over Pillow's size limit, or one whose channels do
            not fit the modality.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    if path.suffix == ".npy":
        return _from_array(path, modality.codec)
    image = _open_image(path)
    if modality.codec == "rgb":
        return _to_rgb(image, path)
    if modality.codec == "normal":
        if image.mode not in ("RGB", "RGBA"):
            raise UserError(f"{path}: a normal map has three 8-bit channels, this image has mode {image.mode!r}")
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1
    if image.mode not in ("L", *(("P",) if modality.codec == "segmentation" else ()), *_DEEP_GREY):
        raise UserError(
            f"{path}: a {modality.name} map has one channel of 8 or 16 bits, this image has mode {image.mode!r}"
        )
    values = np.asarray(image)
    return values.astype(np.float32) * np.float32(depth_scale) if modality.codec == "depth" else values.astype(np.int64)


def load_rgb(path: str | Path) -> np.ndarray:
    """Read any image as (H, W, 3) uint8; raises UserError like ``load_raw``."""
    return load_raw(path, Modality("rgb", codec="rgb"))


def _from_array(path: Path, codec: str) -> np.ndarray:
    if codec not in ("depth", "normal"):
        raise UserError(f"{path}: .npy files are read for depth and normals only; give an image")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        # of any text file numpy says that it is a pickle, and how to load it unsafely
        reason = "no array of numbers" if "pickle" in str(error) else str(error)
        raise UserError(f"{path}: not a readable .npy array: {reason}") from None
    values = values[..., 0] if codec == "depth" and values.ndim == 3 and values.shape[-1] == 1 else values
    shape = "(height, width)" if codec == "depth" else "(height, width, 3)"
    fits = values.ndim == 2 if codec == "depth" else values.ndim == 3 and values.shape[-1] == 3
    if not fits or values.dtype.kind not in "fiu" or values.size == 0:
        raise UserError(f"{path}: holds {values.dtype} {values.shape}; give numbers of shape {shape}")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which callers refuse
        return values.astype(np.float32)


def _open_image(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(
            f"{path}: the image has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: truncated or damaged image: {error}") from None


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_GREY:
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if values.max(initial=0) > 255 or image.mode != "I" else 255.0
        return np.round(values.clip(0, top) * (255 / top)).astype(np.uint8)[..., None].repeat(3, axis=2)
    if image.mode == "F":
        raise UserError(f"{path}: an RGB image of 32-bit floats has no known range: save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"))
