"""The layouts that people keep images in: one or many, channels first, last, or left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError
from mmdit.modalities.reading import Reading
from mmdit.modalities.stored import check_dense, open_stored


def shape_words(channels: int | None) -> str:
    """The shape of a raw array, for messages."""
    return "(height, width)" if channels is None else f"(height, width, {channels})"


def split_values(value: Any, channels: int | None) -> list[Any]:
    """One value or a batch -> the single values.

    Args:
        value: a PIL image, a ``Reading``, (H, W[, C]), (C, H, W), (1, H, W), a batch of these, or a list. Maps (H, W) may be
            stored in 3 or 4 channels of colours that are equal, as ``cv2.imread`` returns them, the 4th is opacity. Of maps,
            (3, H, W) is a batch of three that differ.
        channels: of one raw array; None = (H, W).

    Returns:
        PIL images, readings, and arrays (H, W[, C]).

    Raises:
        UserError: another type or shape, nothing, a map in colours, or (3, H, W) that may be three maps or one in grey.
    """
    if isinstance(value, Reading | Image.Image):
        return [value]
    if isinstance(value, str | bytes | os.PathLike):
        kind = "URL" if isinstance(value, str) and "://" in value else "path"
        hint = "download it, and open it" if kind == "URL" else "open it"
        raise UserError(f"is a {kind}, {shown(value)}: {hint} with PIL.Image.open, or give an array or a tensor")
    if isinstance(value, Sequence):
        samples = [sample for item in value for sample in split_values(item, channels)]
    elif isinstance(value, Tensor | np.ndarray):
        if isinstance(value, Tensor):
            check_dense(value)
        ndim = 2 if channels is None else 3
        array = _channels_last(open_stored(value).array, channels)
        if array.ndim not in (ndim, ndim + 1):
            raise UserError(f"has shape {tuple(value.shape)}: give {shape_words(channels)}, or a batch of them")
        samples = list(array) if array.ndim == ndim + 1 else [array]
    else:
        raise UserError(f"is a {type(value).__name__}: give a PIL image, an array, a tensor, or a list of these")
    if not samples or any(isinstance(sample, np.ndarray) and sample.size == 0 for sample in samples):
        raise UserError("is empty: give at least one image")
    return samples


def shown(path: Any) -> str:
    """A path or text for a message: its end, where it is long."""
    text = os.fsdecode(path)
    return repr(text if len(text) <= 80 else f"…{text[-80:]}")


def _channels_last(array: Any, channels: int | None) -> np.ndarray:
    """(…, C, H, W) as tensors are kept -> (…, H, W, C); one channel, first or last -> (…, H, W)."""
    wanted = channels or 1
    if array.ndim < 3:
        return array
    if array.shape[-1] != wanted and array.shape[-3] == wanted:
        array = np.moveaxis(array, -3, -1)
    if channels is None and array.shape[-1] == 1 and array.ndim <= 4:
        return array[..., 0]
    return _without_colours(array) if channels is None and array.ndim <= 4 else array


def _without_colours(array: np.ndarray) -> np.ndarray:
    """Maps (H, W) or (N, H, W) of an array that may store each in 3 or 4 channels, last or first."""
    given, axis = array.shape, next((axis for axis in (-1, -3) if _are_colours(array.shape, axis)), None)
    if axis is None:
        return array
    first, *others = np.moveaxis(array, axis, 0)[:3]
    are_equal = all(np.array_equal(first, other, equal_nan=array.dtype.kind == "f") for other in others)
    if array.ndim == 3 and axis == -3:  # a batch as well, of maps that differ
        if are_equal:
            raise UserError(
                f"has shape {given}, equal along the first axis: give one (height, width), or a list of maps"
            )
        return array
    if not are_equal:
        raise UserError(f"has shape {given}, colours: give one channel (height, width); a batch is a list of them")
    return first


def _are_colours(shape: tuple[int, ...], axis: int) -> bool:
    """Whether an axis is of 3 or 4 channels, next to two that are larger."""
    others = shape[-3:-1] if axis == -1 else shape[-2:]
    return shape[axis] in (3, 4) and min(others) > shape[axis]
