"""A video as frames in order, wherever they are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Frame:
    """pixels: (H, W, 3) uint8, upright; time: seconds since the first frame; duration: seconds that it is shown."""

    pixels: np.ndarray
    time: Fraction
    duration: Fraction


class Video(ABC):
    """Frames that are read one by one.

    Attributes:
        path: a file, or a folder of images.
        size: (height, width) in pixels, as it is shown.
        rate: frames per second, on average.
        num_frames: None = unknown; of a file, as it declares.
        problem: what kept ``frames`` from reading to the end; None = nothing so far.
    """

    path: Path
    size: tuple[int, int]
    rate: Fraction
    num_frames: int | None
    problem: str | None = None

    @abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Read from the beginning. What can't be read ends it, and is in ``problem``."""

    @abstractmethod
    def digest(self) -> str:
        """64 hexadecimal digits of the content."""
