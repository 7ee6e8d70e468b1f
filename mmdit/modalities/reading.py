"""What reading a file, a picture or an array gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reading:
    """A raw array as it was read.

    Args:
        values: the raw array.
        relative: depth only: known up to scale and shift, in the codec's own space.
        orientation: EXIF's tag that was applied; 1 = none.
        as_seen: whether the array is known to be as seen, so that no tag of another file turns it.
        note: what was guessed about the file, for the user; None = nothing.
    """

    values: np.ndarray
    relative: bool = False
    orientation: int = 1
    as_seen: bool = False
    note: str | None = None

    def replace(self, **changes: Any) -> Reading:
        """Return a copy with fields changed."""
        return dataclasses.replace(self, **changes)
