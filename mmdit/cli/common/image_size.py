"""``--size``: what images are cropped and resized to."""

from __future__ import annotations

import re

from mmdit.errors import UserError
from mmdit.storage.json_text import quoted

MAX_SIDE = 16_384


def read_size(size: str | int | tuple[int, int] | None) -> int | tuple[int, int] | None:
    """Read a size in pixels: one number for a square, or height x width, such as "128x192".

    Returns the side of a square, or (height, width); None of None.

    Raises:
        UserError: another text, or a side that is not from 1 to ``MAX_SIDE``.
    """
    if size is None:
        return None
    text = "x".join(map(str, size)) if isinstance(size, tuple | list) else str(size)
    match = re.fullmatch(r"([0-9]{1,9})(?:[xX]([0-9]{1,9}))?", text.strip(), re.ASCII)
    sides = [int(side) for side in (match.groups() if match else ()) if side is not None]
    if not sides or not all(1 <= side <= MAX_SIDE for side in sides):
        raise UserError(
            f"--size is {quoted(text)}: give height x width in pixels, such as 128x192, or one number for a square; each from "
            f"1 to {MAX_SIDE}"
        )
    height, width = sides[0], sides[-1]
    return height if height == width else (height, width)
