"""Condition modalities as users have them (PIL, numpy, tensors; one or many) -> what the VAE reads.

One rule for sizes: every condition is resized to the size of the output, which is ``height`` x ``width``, or the
model's own where they are not given. The conditions of one sample are aligned pixel by pixel, so they must have
one size; conditions of different sizes are refused unless ``height`` and ``width`` say that a resize is wanted.

Samples of one batch may be given different modalities, and some none at all.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.codec import NOTHING, Codec
from mmdit.modalities.orientation import turn_together
from mmdit.modalities.reading import Reading
from mmdit.pipelines.region import Region
from mmdit.task import Role

logger = logging.getLogger(__name__)

Size = tuple[int, int]
Sample = dict[str, Reading]


@dataclass(frozen=True)
class GivenImages:
    """What the samples of a call are given, encoded.

    Args:
        images: modality -> (N, 3, height, width) float32 in [-1, 1] at the size of the output; zeros for a sample without it.
        present: modality -> (N,) bool, which samples have it.
        originals: the same images at their own size, where they are asked for.
        listed: how many samples a list of conditions names, which may give nothing.
    """

    images: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    listed: int = 1

    @classmethod
    def of_all(cls, images: dict[str, Tensor]) -> GivenImages:
        """Images that every sample has."""
        return cls(images, {name: torch.ones(len(x), dtype=torch.bool) for name, x in images.items()})

    def counts(self) -> dict[str, int]:
        """How many there are, by modality; of a list that gives none its length."""
        if not self.images and self.listed > 1:
            return {"conditions": self.listed}
        return {name: len(x) for name, x in self.images.items()}

    def roles(self, modalities: Collection[str], batch: int) -> Tensor:
        """(B, M): what a sample is given is a condition, the rest is generated."""
        roles = torch.full((batch, len(modalities)), int(Role.GENERATE))
        for index, name in enumerate(modalities):
            if name in self.present:
                roles[self.present[name], index] = int(Role.CONDITION)
        return roles

    def repeat(self, batch: int, num_images: int) -> GivenImages:
        """One sample counts for the whole batch, and each is there ``num_images`` times."""

        def repeated(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: x.expand(batch, *x.shape[1:]).repeat_interleave(num_images, 0) for name, x in values.items()}

        return GivenImages(repeated(self.images), repeated(self.present), repeated(self.originals))

    def only(self, names: Collection[str]) -> GivenImages:
        """Those of some modalities."""

        def chosen(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: x for name, x in values.items() if name in names}

        return GivenImages(chosen(self.images), chosen(self.present), chosen(self.originals))

    def filled(self, images: dict[str, Tensor]) -> GivenImages:
        """``images`` of every sample and modality in place of these; originals stay where no sample lacks them."""
        originals = {name: x for name, x in self.originals.items() if self.everywhere(name)}
        return replace(GivenImages.of_all(images), originals=originals)

    def everywhere(self, name: str) -> bool:
        """Whether every sample has the modality."""
        return name in self.present and bool(self.present[name].all())

    def complete(self, name: str, generated: Tensor) -> Tensor:
        """Images (N, 3, H, W) of a modality: those given, and ``generated`` (N, 3, H, W) elsewhere."""
        if name not in self.present:
            return generated
        images = self.images[name].to(generated)
        return torch.where(self.present[name].to(generated.device)[:, None, None, None], images, generated)


def read_conditions(
    conditions: Any, codecs: Mapping[str, Codec], *, edit: str | None = None, options: Mapping[str, Any] = NOTHING
) -> list[Sample]:
    """Read conditions in raw units.

    Args:
        conditions: modality -> one raw value or a batch of them, None in a list = that sample lacks it; or a list with the
            conditions of each sample, None = it has none. A value may be what ``Codec.read`` returned. rgb: PIL image of any
            mode, uint8 or floats in [0, 1]; depth: metres (0, NaN and infinity are invalid), or relative as the pipeline
            returns it: floats that all lie in [0, 1], or 8 bits; normal: unit vectors (H, W, 3);
            segmentation: label ids (H, W). Arrays are as seen; a PIL image is turned as its EXIF tag says.
        codecs: the model's modalities -> codecs.
        edit: the argument that asks to edit them, so that all modalities may be given, and one must be; None = none does.
        options: how values are read, see ``Codec.read``.

    Returns:
        The readings of each sample; a single one counts for all.

    Raises:
        UserError: unknown modalities, nothing left to generate, different counts, values that can't be read.
    """
    if isinstance(conditions, list | tuple):
        if not conditions:
            raise UserError("conditions is an empty list: give the conditions of each sample, None = it has none")
        return [_read_one(one, f"conditions[{i}]", codecs, edit, options) for i, one in enumerate(conditions)]
    if not isinstance(conditions, Mapping):
        raise UserError(
            f"conditions is a {type(conditions).__name__}: give modality -> value, such as {{'rgb': image}}"
        )
    given = {name: _read_all(name, value, codecs, options) for name, value in conditions.items()}
    count = common_count({name: len(readings) for name, readings in given.items()}, "conditions")
    given = {name: readings * count if len(readings) == 1 else readings for name, readings in given.items()}
    samples = [{name: given[name][i] for name in given if given[name][i] is not None} for i in range(count)]
    return [_checked(sample, codecs, edit) for sample in samples]  # type: ignore[arg-type]


def given_size(samples: Sequence[Sample]) -> Size | None:
    """Height and width of what is given, None = nothing. Raises UserError where samples differ."""
    sizes = {next(iter(sample.values())).values.shape[:2]: None for sample in samples if sample}
    if len(sizes) > 1:
        raise UserError(f"images differ in size (height x width): {_listed(sizes)}; give images of one size in a call")
    return next(((size[0], size[1]) for size in sizes), None)


def encode_conditions(
    samples: Sequence[Sample],
    codecs: Mapping[str, Codec],
    height: int,
    width: int,
    may_differ: bool,
    *,
    region: Region | None = None,
    originals: bool = False,
) -> GivenImages:
    """Encode what was read to (N, 3, height, width) float32 in [-1, 1] of each modality.

    Args:
        samples: from ``read_conditions``.
        codecs: the model's modalities -> codecs.
        height, width: size of the output in pixels.
        may_differ: whether the conditions of one sample may have different sizes.
        region: the part of them to generate anew; it is aligned with them.
        originals: encode them at their own size too.

    Raises:
        UserError: different sizes, or values that a codec refuses.
    """
    sizes = [{name: reading.values.shape[:2] for name, reading in sample.items()} for sample in samples]
    if not may_differ or originals:
        for each in sizes:
            _check_one_size(each if region is None else {**each, "mask": region.given_size})
    resized = {size for each in sizes for size in each.values()} - {(height, width)}
    if resized and not originals:
        message = "conditions of %s pixels (height x width) are resized to %d x %d"
        logger.warning(message, _listed(sorted(resized)), height, width)
    names = [name for name in codecs if any(name in sample for sample in samples)]
    return GivenImages(
        {name: _stack(name, samples, codecs[name], (height, width)) for name in names},
        {name: torch.tensor([name in sample for sample in samples]) for name in names},
        {name: _stack(name, samples, codecs[name], None) for name in names} if originals else {},
        len(samples),
    )


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


def _listed(sizes: Any) -> str:
    listed = [f"{h} x {w}" for h, w in sizes]
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")


def _read_one(
    conditions: Any, where: str, codecs: Mapping[str, Codec], edit: str | None, options: Mapping[str, Any]
) -> Sample:
    """The conditions of one sample in a list of them."""
    if not isinstance(conditions, Mapping | None):
        kind = type(conditions).__name__
        raise UserError(
            f"{where} is a {kind}: give modality -> value for each sample, such as {{'rgb': image}}, or None"
        )
    given = {name: value for name, value in (conditions or {}).items() if value is not None}
    try:
        readings = {name: _read_all(name, value, codecs, options) for name, value in given.items()}
        for name, several in readings.items():
            if len(several) != 1 or several[0] is None:
                raise UserError(f"condition {name!r} holds {len(several)} values: give the one of this sample")
        return _checked({name: several[0] for name, several in readings.items() if several[0]}, codecs, edit)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _checked(sample: Sample, codecs: Mapping[str, Codec], edit: str | None) -> Sample:
    if len(sample) == len(codecs) and edit is None:
        raise UserError(f"conditions hold all modalities ({', '.join(codecs)}): leave out at least one to be generated")
    if edit is not None and not sample:
        raise UserError(
            f"{edit} says what to keep of a picture, and none is given: give conditions, such as {{'rgb': image}}"
        )
    return turn_together(sample, codecs)


def _read_all(name: str, value: Any, codecs: Mapping[str, Codec], options: Mapping[str, Any]) -> list[Reading | None]:
    """One value, a batch array, or a list -> one reading each; None in a list stays."""
    if name not in codecs:
        raise unknown_name("modality in conditions", name, codecs)
    codec = codecs[name]
    try:
        if isinstance(value, list | tuple) and any(each is None for each in value):
            singles = [one for each in value for one in ([None] if each is None else codec.split(each))]
        else:
            singles = codec.split(value)
    except UserError as error:
        raise UserError(f"condition {name!r} {error}") from None
    try:
        readings = [each if isinstance(each, Reading | None) else codec.read(each, options) for each in singles]
        reasons = [reason for reading in readings if reading is not None for reason in codec.misread(reading.values)]
    except UserError as error:
        raise UserError(f"condition {name!r}: {error}") from None
    if reasons:
        raise UserError(f"condition {name!r}: {reasons[0]}")
    for note in dict.fromkeys(reading.note for reading in readings if reading is not None and reading.note):
        logger.warning("condition %r: %s", name, note)
    return readings


def _stack(name: str, samples: Sequence[Sample], codec: Codec, size: Size | None) -> Tensor:
    """(N, 3, H, W) of one modality, at a size or at their own; zeros for samples that lack it."""
    encoded = [_encode(name, sample[name], codec, size) if name in sample else None for sample in samples]
    like = next(each for each in encoded if each is not None)
    return torch.stack([torch.zeros_like(like) if each is None else each for each in encoded])


def _encode(name: str, reading: Reading, codec: Codec, size: Size | None) -> Tensor:
    try:
        values = reading.values if size is None else codec.resize(reading.values, *size)
        return codec.encode_reading(reading.replace(values=values))
    except UserError as error:
        raise UserError(f"condition {name!r}: {error}") from error
