"""Condition modalities as users have them (PIL, numpy, tensors; one or many) -> what the VAE reads.

One rule for sizes: every condition is resized to the size of the output, which is ``height`` x ``width``, or the
model's own where they are not given. The conditions of one sample must have one size, for they are aligned pixel by
pixel; conditions of different sizes are refused unless ``height`` and ``width`` say that a resize is wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.codecs import Codec, DepthCodec
from mmdit.pipelines.region import Region

logger = logging.getLogger(__name__)

_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I")


def encode_conditions(
    conditions: Mapping[str, Any],
    codecs: Mapping[str, Codec],
    height: int,
    width: int,
    may_differ: bool,
    region: Region | None = None,
) -> dict[str, Tensor]:
    """Encode conditions in raw units to (N, 3, height, width) float32 in [-1, 1] each; a single one counts for all N.

    Args:
        conditions: modality -> one raw value or a batch of them. rgb: PIL image of any mode, uint8 or floats in [0, 1];
            depth: metres (0, NaN and infinity are invalid), or relative as the pipeline returns it, which is told by
            floats that all lie in [0, 1], or by 8 bits; normal: unit vectors (H, W, 3); segmentation: label ids (H, W).
        codecs: modality -> codec, for the modalities of the model.
        height, width: size of the output in pixels.
        may_differ: whether the conditions of one sample may have different sizes.
        region: what of them is generated anew; it is aligned with them, and lets all modalities be given.

    Raises:
        UserError: unknown modalities, nothing left to generate, different counts or sizes, values a codec refuses.
    """
    if not isinstance(conditions, Mapping):
        raise UserError(
            f"conditions is a {type(conditions).__name__}: give modality -> value, such as {{'rgb': image}}"
        )
    for name in conditions:
        if name not in codecs:
            raise unknown_name("modality in conditions", name, codecs)
    if len(conditions) == len(codecs) and region is None:
        raise UserError(f"conditions hold all modalities ({', '.join(codecs)}): leave out at least one to be generated")
    raw = {name: _samples(name, value, codecs[name]) for name, value in conditions.items()}
    count = common_count({name: len(arrays) for name, arrays in raw.items()}, "conditions")
    raw = {name: arrays * count if len(arrays) == 1 else arrays for name, arrays in raw.items()}
    if not may_differ:
        for index in range(count):
            of_mask = {} if region is None else {"mask": region.given_size}
            _check_one_size({**{name: arrays[index].shape[:2] for name, arrays in raw.items()}, **of_mask})
    sizes = {array.shape[:2] for arrays in raw.values() for array in arrays} - {(height, width)}
    if sizes:
        listed = ", ".join(f"{h} x {w}" for h, w in sorted(sizes)[:3]) + (", …" if len(sizes) > 3 else "")
        logger.warning("conditions of %s pixels (height x width) are resized to %d x %d", listed, height, width)
    return {
        name: torch.stack([_encode(name, array, codecs[name], height, width) for array in arrays])
        for name, arrays in raw.items()
    }


def common_count(counts: Mapping[str, int], what: str) -> int:
    """Return the number of samples: all counts must be equal, or 1. Raises UserError."""
    several = {count for count in counts.values() if count != 1}
    if len(several) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"{what} differ in number: {listed}; give as many of each, or one for all")
    return several.pop() if several else 1


def _check_one_size(sizes: Mapping[str, tuple[int, ...]]) -> None:
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {h} x {w}" for name, (h, w) in sizes.items())
        raise UserError(
            f"conditions differ in size (height x width): {listed}; give aligned maps of one size, or height and width "
            "to resize them all"
        )


def _samples(name: str, value: Any, codec: Codec) -> list[np.ndarray]:
    """One raw value, a batch array, or a list of raw values -> list of raw arrays (H, W[, 3])."""
    ndim = codec.decode(torch.zeros(1, 3, 1, 1)).ndim - 1  # of one raw array: what the codec decodes to
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        samples = [sample for item in value for sample in _samples(name, item, codec)]
    elif isinstance(value, Image.Image):
        samples = [_from_pil(value, codec)]
    elif isinstance(value, Tensor | np.ndarray):
        array = _channels_last(_to_numpy(value), ndim)
        if array.ndim not in (ndim, ndim + 1):
            shape = "(height, width, 3)" if ndim == 3 else "(height, width)"
            raise UserError(f"condition {name!r} has shape {tuple(value.shape)}: give {shape}, or a batch of them")
        samples = list(array) if array.ndim == ndim + 1 else [array]
    else:
        raise UserError(
            f"condition {name!r} is a {type(value).__name__}: give a PIL image, an array, a tensor, or a list of these"
        )
    if not samples or any(sample.size == 0 for sample in samples):
        raise UserError(f"condition {name!r} is empty: give at least one image")
    return samples


def _to_numpy(value: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    return value


def _channels_last(array: np.ndarray, ndim: int) -> np.ndarray:
    """(…, 3, H, W) as tensors are kept -> (…, H, W, 3); (…, H, W, 1) -> (…, H, W)."""
    if ndim == 3 and array.ndim >= 3 and array.shape[-1] != 3 and array.shape[-3] == 3:
        return np.moveaxis(array, -3, -1)
    if ndim == 2 and array.ndim >= 3 and array.shape[-1] == 1:
        return array[..., 0]
    return array


def _from_pil(image: Image.Image, codec: Codec) -> np.ndarray:
    if codec.resample == "area":
        return _rgb_from_pil(ImageOps.exif_transpose(image))
    array = np.asarray(image)
    if array.ndim == 3 and array.dtype == np.uint8:  # a map of vectors, (v + 1) / 2 x 255 as on disk
        return array[..., :3].astype(np.float32) / 127.5 - 1
    return array


def _rgb_from_pil(image: Image.Image) -> np.ndarray:
    """Any mode -> (H, W, 3) uint8: 16-bit grey is scaled, transparency is laid over white."""
    if image.mode in _DEEP_GREY:
        grey = np.asarray(image).clip(0, 65535) / 257
        return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"))


def _encode(name: str, array: np.ndarray, codec: Codec, height: int, width: int) -> Tensor:
    try:
        if array.shape[:2] != (height, width):
            array = _resize(array, codec, height, width)
        if isinstance(codec, DepthCodec):
            return codec.encode(array, relative=_is_relative(array))
        return codec.encode(array)
    except UserError as error:
        raise UserError(f"condition {name!r}: {error}") from error


def _is_relative(depth: np.ndarray) -> bool:
    """Whether a depth map is relative, as the pipeline returns it: floats that all lie in [0, 1], or a picture of 8 bits."""
    if depth.dtype == np.uint8:
        return True
    if not np.issubdtype(depth.dtype, np.floating):
        return False
    finite = depth[np.isfinite(depth)]
    return finite.size > 0 and finite.min() >= 0 and finite.max() <= 1


def _resize(array: np.ndarray, codec: Codec, height: int, width: int) -> np.ndarray:
    """Lanczos where values may be averaged; else the nearest pixel, for a mean of two labels is no label."""
    if codec.resample == "area":
        pixels = array if array.dtype == np.uint8 else codec.decode(codec.encode(array)[None])[0]
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    rows = ((np.arange(height) + 0.5) * array.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * array.shape[1] / width).astype(np.int64)
    return array[rows[:, None], columns[None, :]]
