"""Sizes in pixels, (height, width): of what a call makes, and of what it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmdit.errors import UserError
from mmdit.pipelines.conditions import Sample, given_size
from mmdit.pipelines.limits import check_size


@dataclass(frozen=True)
class Sizes:
    """Sizes of one call.

    Args:
        height, width: of what the networks make.
        given: of what the call is given, where it matters to what is made or returned; else None.
        may_differ: whether the conditions of one sample may have several sizes: the caller asks for both height and width.
    """

    height: int
    width: int
    given: tuple[int, int] | None
    may_differ: bool

    @property
    def made(self) -> tuple[int, int]:
        """(height, width) of what the networks make."""
        return self.height, self.width

    @property
    def largest(self) -> tuple[int, int]:
        """That of what is made and what is given with more pixels."""
        return max(self.made, self.given or (1, 1), key=math.prod)


def read_sizes(
    height: int | None,
    width: int | None,
    resolution: int | None,
    match_input: bool,
    samples: Sequence[Sample],
    *,
    native: tuple[int, int],
    unit: int,
) -> Sizes:
    """Judge what a call says of sizes.

    Args:
        height, width: of the output; None = the ``native`` ones.
        resolution: longer side in place of ``height`` and ``width``, in the proportions of what is given.
        match_input: whether results are returned at the size of what is given.
        samples: what is given, as read.
        native: that the model was trained for.
        unit: sizes are multiples of it.

    Raises:
        UserError: as ``output_size`` and ``processing_size``; both of them; nothing given whose size could be matched; given
            pictures of several sizes where theirs matters.
    """
    may_differ = height is not None and width is not None
    given = given_size(samples) if match_input or resolution is not None else None
    if resolution is not None:
        if height is not None or width is not None:
            raise UserError("processing_resolution is given beside height or width: give one of the two")
        height, width = processing_size(resolution, given, unit)
    height, width = output_size(height, width, native=native, unit=unit)
    if match_input and given is None:
        raise UserError("match_input_resolution is True, but nothing is given: leave it out")
    return Sizes(height, width, given, may_differ)


def output_size(height: int | None, width: int | None, *, native: tuple[int, int], unit: int) -> tuple[int, int]:
    """Height and width in pixels, ``native`` where they are None. Raises UserError unless they are multiples of ``unit``."""
    sizes = {"height": height, "width": width}
    for name, size in sizes.items():
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise UserError(f"{name} is {size!r}: give a whole number of pixels, a multiple of {unit}")
        if size < 1 or size % unit:
            nearest = max(unit, round(size / unit) * unit)
            raise UserError(f"{name} is {size}: give a multiple of {unit} pixels, such as {nearest}")
    height, width = height or native[0], width or native[1]
    check_size(height, width)
    return height, width


def processing_size(resolution: int, given: tuple[int, int] | None, unit: int) -> tuple[int, int]:
    """Height and width whose longer side is ``resolution``, in the proportions of what is ``given`` (None = square).

    Both are rounded to multiples of ``unit``. Raises UserError for a resolution that is no such multiple.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int | np.integer) or resolution < 1:
        raise UserError(f"processing_resolution is {resolution!r}: give a whole number of pixels, a multiple of {unit}")
    if resolution % unit:
        nearest = max(unit, round(resolution / unit) * unit)
        raise UserError(f"processing_resolution is {resolution}: give a multiple of {unit} pixels, such as {nearest}")
    height, width = given or (1, 1)
    shorter = max(unit, round(resolution * min(height, width) / max(height, width) / unit) * unit)
    size = (shorter, int(resolution)) if width >= height else (int(resolution), shorter)
    check_size(*size)
    return size
