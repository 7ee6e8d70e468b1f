"""The instrument that judges pictures made from prompts, and that is not the model: objects with category, colour and place.

A ``SceneDetector`` names every pixel; the connected pixels of one category are an object. It looks at each again, enlarged
twice, and all its pixels vote. The colour of an object is the mean of its pixels in sRGB, [0, 1], without the rim, named
by the hue table that captions are written with. What it gets right on real pictures is reported beside every number
(``controls.real_images``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from mmdit.colours import colour_name
from mmdit.encoders.saved_network import CONFIG_NAME
from mmdit.encoders.scene_detector import SceneDetector, enlarge, zoom_box
from mmdit.errors import UserError
from mmdit.metrics.arrays import Array
from mmdit.names import BACKGROUND_CLASSES
from mmdit.pipelines.loading import ASSETS, bundled_models, resolve_model

INSTRUMENT_FOLDER = "detector"
MIN_AREA = 0.006  # of the picture: smaller groups of pixels are no object
ZOOMS = (1.5, 2.2)  # sides of the enlarged squares over the object's
_BATCH = 64
_LEAST_PART, _LEAST_CORE = 8, 12  # pixels
_NEIGHBOURS = np.ones((3, 3))  # pixels that touch at a corner are connected


@dataclass(frozen=True)
class SeenObject:
    """One object in a picture.

    mask: (H, W) bool, at the instrument's size; colour: (3,) mean sRGB in [0, 1]; x: the mean column, bottom: the lowest
    row, both as shares of the picture's width and height.
    """

    category: str
    mask: Array
    colour: Array

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.mask.sum())

    @property
    def colour_name(self) -> str:
        return colour_name(self.colour)

    @property
    def x(self) -> float:
        return float(np.nonzero(self.mask)[1].mean() / self.mask.shape[1])

    @property
    def bottom(self) -> float:
        return float(np.nonzero(self.mask)[0].max() / self.mask.shape[0])


@dataclass(frozen=True)
class Seen:
    """What the instrument sees in a picture, uint8 (H, W, 3): its objects, the largest first, all pixels of objects, (H, W)
    bool, and those of floor and wall, name -> (H, W) bool.
    """

    picture: Array
    objects: tuple[SeenObject, ...]
    foreground: Array
    ground: Mapping[str, Array] = field(default_factory=dict)

    @property
    def mean(self) -> Array:
        """(3,) the mean colour of the whole picture, sRGB in [0, 1]."""
        return self.picture.mean(axis=(0, 1)) / 255

    def ground_colour(self, name: str) -> Array:
        """(3,) the mean colour of the floor or the wall, sRGB in [0, 1]; of the whole picture where none is seen."""
        mask = self.ground.get(name)
        return self.picture[mask].mean(axis=0) / 255 if mask is not None and mask.any() else self.mean

    @property
    def main(self) -> SeenObject | None:
        """The largest object."""
        return self.objects[0] if self.objects else None

    def find(self, category: str) -> SeenObject | None:
        """The largest object of a category."""
        return next((each for each in self.objects if each.category == category), None)

    def at(self, mask: Array) -> SeenObject | None:
        """The object that covers most of a mask (H, W)."""
        covering = [each for each in self.objects if (each.mask & mask).any()]
        return max(covering, key=lambda each: int((each.mask & mask).sum()), default=None)


# Where the first of two objects stands to the second: centres of mass for the sides; the one in front reaches lower down.
RELATIONS: dict[str, Callable[[SeenObject, SeenObject], bool]] = {
    "left": lambda first, second: first.x < second.x,
    "right": lambda first, second: first.x > second.x,
    "front": lambda first, second: first.bottom > second.bottom,
    "behind": lambda first, second: first.bottom < second.bottom,
}


class Instrument:
    """Looks at pictures with a trained detector: once at all of a picture, then again at each object, enlarged.

    Args:
        detector: of the categories.
        min_area: share of the picture that an object has at least.
        name: for reports.
    """

    def __init__(self, detector: SceneDetector, min_area: float = MIN_AREA, name: str = "") -> None:
        self.detector, self.min_area, self.name = detector.eval(), min_area, name
        self.categories = [label for label in detector.labels if label not in BACKGROUND_CLASSES]
        self.rows = [row for row, label in enumerate(detector.labels) if label not in BACKGROUND_CLASSES]

    @torch.no_grad()
    def look(self, pictures: Sequence[Array]) -> list[Seen]:
        """Pictures uint8 (H, W, 3), resized to the instrument's size where they have another."""
        size = int(self.detector.config["image_size"])
        resized = [_resized(picture, size) for picture in pictures]
        seen: list[Seen] = []
        for start in range(0, len(resized), _BATCH):
            batch = np.stack(resized[start : start + _BATCH])
            images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
            labels = self.detector(images).argmax(dim=1)  # (B, H, W)
            parts = [part for row in range(len(labels)) for part in self._parts(row, labels[row].numpy())]
            for (row, mask), voted in zip(parts, self._vote(images, parts), strict=True):
                labels[row][torch.from_numpy(mask)] = voted
            seen += [self._seen(picture, rows) for picture, rows in zip(batch, labels.numpy(), strict=True)]
        return seen

    def _parts(self, number: int, labels: Array) -> list[tuple[int, Array]]:
        """(number, mask) of each group of connected pixels of one category."""
        return [(number, mask) for row in self.rows for mask in _groups(labels == row, _LEAST_PART)]

    def _vote(self, images: Tensor, parts: Sequence[tuple[int, Array]]) -> list[int]:
        """The class of each part, by all its pixels in the enlarged picture."""
        voted: list[int] = []
        for start in range(0, len(parts), _BATCH):
            chosen = parts[start : start + _BATCH]
            masks = torch.from_numpy(np.stack([mask for _, mask in chosen]))
            scores = torch.zeros(len(chosen), len(self.detector.labels))
            for zoom in ZOOMS:
                boxes = torch.tensor([zoom_box(mask, zoom) for mask in masks])
                enlarged = enlarge(images[[row for row, _ in chosen]], boxes, "bilinear")
                inside = enlarge(masks[:, None].float(), boxes, "nearest")  # (n, 1, H, W)
                likely = self.detector(enlarged).log_softmax(dim=1) * inside
                scores += likely.sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp_min(1)  # (n, K)
            voted += [self.rows[best] for best in scores[:, self.rows].argmax(dim=1).tolist()]
        return voted

    def _seen(self, picture: Array, labels: Array) -> Seen:
        objects = [
            SeenObject(self.detector.labels[row], mask, _colour(picture, mask))
            for row in self.rows
            for mask in _groups(labels == row, self.min_area * labels.size)
        ]
        objects.sort(key=lambda each: -each.area)
        ground = {label: labels == row for row, label in enumerate(self.detector.labels) if label in BACKGROUND_CLASSES}
        return Seen(picture, tuple(objects), np.isin(labels, self.rows), ground)

    def resize_mask(self, mask: Array) -> Array:
        """A mask (H, W) at the instrument's size."""
        size = int(self.detector.config["image_size"])
        return mask if mask.shape == (size, size) else _resized(mask.astype(np.uint8) * 255, size) > 127


def _groups(mask: Array, least: float) -> list[Array]:
    """Connected pixels, each group as a mask, those of at least so many pixels."""
    numbers, count = ndimage.label(mask, structure=_NEIGHBOURS)
    groups = (numbers == number for number in range(1, count + 1))
    return [group for group in groups if group.sum() >= least]


def _colour(picture: Array, mask: Array) -> Array:
    """Mean sRGB in [0, 1] without the rim, whose pixels have something of what is behind, if enough is left."""
    core = ndimage.binary_erosion(mask)
    chosen = core if core.sum() >= _LEAST_CORE else mask
    return picture[chosen].mean(axis=0) / 255


def _resized(picture: Array, size: int) -> Array:
    if picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))


def find_instrument(
    pipe: Any | None, categories: Sequence[str], name_or_folder: str | None = None
) -> Instrument | None:
    """Load the instrument for a model and a dataset's categories.

    Args:
        pipe: the model; None = any, so that none has a detector of its own.
        name_or_folder: a folder that recipe "detector" exported; None = the folder ``detector`` in the model's own folder, or a
            bundled one that knows all of the categories.

    Returns None where nothing was named and none fits.

    Raises:
        UserError: a folder that can't be loaded, or one named that lacks one of the categories.
    """
    if name_or_folder is not None:
        instrument = _load(Path(name_or_folder))
        lacking = [name for name in categories if name not in instrument.categories]
        if lacking:
            known = ", ".join(instrument.categories)
            raise UserError(f"{name_or_folder}: this detector does not know {lacking[0]!r}: it knows {known}")
        return instrument
    source = None if pipe is None else getattr(pipe.config, "_name_or_path", None) or pipe.name_or_path
    own = resolve_model(source) if source else None
    for folder in (*([own] if isinstance(own, Path) else []), *bundled_models().values()):
        if (folder / INSTRUMENT_FOLDER / CONFIG_NAME).is_file():
            instrument = _load(folder / INSTRUMENT_FOLDER)
            if set(categories) <= set(instrument.categories):
                return instrument
    return None


def _load(folder: Path) -> Instrument:
    # A bundled one is named from the package on: reports say the same wherever that is installed.
    name = folder.relative_to(ASSETS.parents[1]).as_posix() if folder.is_relative_to(ASSETS) else str(folder)
    return Instrument(SceneDetector.from_pretrained(folder), name=name)
