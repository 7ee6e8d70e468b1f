"""What a subject is shown by: the picture in a file, or a part of it, or what a small copy leaves of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmdit.data.prompted import crop
from mmdit.data.prompts import Entity
from mmdit.metrics.arrays import Array
from mmdit.modalities.rgb import read_picture


@dataclass(frozen=True)
class View(ABC):
    """Something made of the picture in a file."""

    path: Path

    @abstractmethod
    def read(self) -> Array:
        """uint8 (H, W, 3). Raises UserError for a file that can't be read."""


@dataclass(frozen=True)
class Shrunk(View):
    """The picture brought to a shorter side of ``side`` pixels, and back to its own size."""

    side: int

    def read(self) -> Array:
        image = Image.fromarray(read_picture(self.path))
        factor = min(1.0, self.side / min(image.size))
        small = [max(1, round(length * factor)) for length in image.size]
        reduced = image.resize((small[0], small[1]), Image.Resampling.BOX)
        return np.asarray(reduced.resize(image.size, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Cut(View):
    """An entity of the picture alone: of a floor or a wall the largest square within its mask, see ``crop``."""

    entity: Entity

    def read(self) -> Array:
        return np.asarray(crop(read_picture(self.path), self.entity))


# A file, or a view of one.
Shown = Path | View


def read_shown(shown: Shown) -> Array:
    """uint8 (H, W, 3). Raises UserError for a file that can't be read."""
    return shown.read() if isinstance(shown, View) else read_picture(shown)
