"""Condition modalities as users have them (PIL, numpy, tensors; one or many) -> what the VAE reads.

One rule for sizes: every condition is resized to the size of the output, which is ``height`` x ``width``, or the
model's own where they are not given. The conditions of one sample are aligned pixel by pixel, so they must have
one size; conditions of different sizes are refused unless ``height`` and ``width`` say that a resize is wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.codec import NOTHING, Codec
from mmdit.modalities.orientation import turn_together
from mmdit.modalities.reading import Reading
from mmdit.pipelines.region import Region

logger = logging.getLogger(__name__)


def encode_conditions(
    conditions: Mapping[str, Any],
    codecs: Mapping[str, Codec],
    height: int,
    width: int,
    may_differ: bool,
    *,
    region: Region | None = None,
    options: Mapping[str, Any] = NOTHING,
) -> dict[str, Tensor]:
    """Encode conditions in raw units to (N, 3, height, width) float32 in [-1, 1] each; a single one counts for all N.

    Args:
        conditions: modality -> one raw value or a batch of them, or what ``Codec.read`` returned. rgb: PIL image of any
            mode, uint8 or floats in [0, 1]; depth: metres (0, NaN and infinity are invalid), or relative as the pipeline
            returns it: floats that all lie in [0, 1], or 8 bits; normal: unit vectors (H, W, 3);
            segmentation: label ids (H, W). Arrays are as seen; a PIL image is turned as its EXIF tag says.
        codecs: the model's modalities -> codecs.
        height, width: size of the output in pixels.
        may_differ: whether the conditions of one sample may have different sizes.
        region: the part of them to generate anew; it is aligned with them, and lets all modalities be given.
        options: how values are read, see ``Codec.read``.

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
    given = {name: _read_all(name, value, codecs[name], options) for name, value in conditions.items()}
    count = common_count({name: len(readings) for name, readings in given.items()}, "conditions")
    given = {name: readings * count if len(readings) == 1 else readings for name, readings in given.items()}
    samples = [turn_together({name: given[name][i] for name in given}, codecs) for i in range(count)]
    sizes = [{name: reading.values.shape[:2] for name, reading in sample.items()} for sample in samples]
    if not may_differ:
        for each in sizes:
            _check_one_size(each if region is None else {**each, "mask": region.given_size})
    resized = {size for each in sizes for size in each.values()} - {(height, width)}
    if resized:
        listed = ", ".join(f"{h} x {w}" for h, w in sorted(resized)[:3]) + (", …" if len(resized) > 3 else "")
        logger.warning("conditions of %s pixels (height x width) are resized to %d x %d", listed, height, width)
    return {
        name: torch.stack([_encode(name, sample[name], codecs[name], height, width) for sample in samples])
        for name in given
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


def _read_all(name: str, value: Any, codec: Codec, options: Mapping[str, Any]) -> list[Reading]:
    """One value, a batch array, or a list -> one reading each."""
    try:
        singles = codec.split(value)
    except UserError as error:
        raise UserError(f"condition {name!r} {error}") from None
    try:
        readings = [each if isinstance(each, Reading) else codec.read(each, options) for each in singles]
    except UserError as error:
        raise UserError(f"condition {name!r}: {error}") from None
    for note in dict.fromkeys(reading.note for reading in readings if reading.note):
        logger.warning("condition %r: %s", name, note)
    return readings


def _encode(name: str, reading: Reading, codec: Codec, height: int, width: int) -> Tensor:
    try:
        return codec.encode_reading(reading.replace(values=codec.resize(reading.values, height, width)))
    except UserError as error:
        raise UserError(f"condition {name!r}: {error}") from error
