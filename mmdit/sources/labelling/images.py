"""A folder of images as it comes: class folders such as ImageNet's, or flat; read, cropped, and labels fitted to them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mmdit.data.transforms import Draw, JointTransform, crop_and_resize
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codec
from mmdit.modalities.rgb import RGBCodec

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# No labeller works at more: beyond it, more pixels cost memory (SAM resizes 192 masks at a time) and tell it nothing.
LABELLING_SIDE = 1024


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image. ``id``: its path in the folder without the suffix; ``category``: the folder it lies in, if any.

    Plain text, because there may be millions of them in each process.
    """

    id: str
    path: str
    category: str | None


@dataclass(frozen=True)
class LoadedImage:
    """``rgb``: (H, W, 3) uint8 to store; ``view``: (h, w, 3) uint8 to label, the same box; or the ``problem``."""

    source: SourceImage
    rgb: np.ndarray | None = None
    view: np.ndarray | None = None
    problem: str = ""


def find_images(root: str | Path) -> list[SourceImage]:
    """List the images below a folder, sorted; the first folder on the way to an image is its category.

    Names that start with a dot are left alone, as are files that are no image by their suffix. Two images whose names
    differ in the suffix alone keep it in their ids.

    Raises:
        UserError: no such folder, or no image in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"--images {str(root)!r}: no such folder; give a folder of images, or of class folders")
    names = sorted(_walk(str(root), "", frozenset()))
    if not names:
        raise UserError(f"--images {str(root)!r}: no image in it ({', '.join(SUFFIXES)})")
    count = Counter(os.path.splitext(name)[0] for name in names)
    images = []
    for name in names:
        stem = os.path.splitext(name)[0]
        category = sys.intern(name.split("/", 1)[0]) if "/" in name else None
        images.append(SourceImage(stem if count[stem] == 1 else name, f"{root}/{name}", category))
    return images


def _walk(root: str, inside: str, above: frozenset[str]) -> Iterator[str]:
    # Class folders are often links; a link to a folder above itself would never end.
    here = os.path.realpath(os.path.join(root, inside))
    if here in above:
        return
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(root, f"{inside}{entry.name}/", above | {here})
            elif entry.name.lower().endswith(SUFFIXES):
                yield inside + entry.name


class ImagesToLabel(Dataset):
    """Map-style dataset of ``LoadedImage``; an image that can't be read has its ``problem`` and no pixels.

    Args:
        images: which.
        size: side of the square that is cropped from the centre and resized; None = the whole image as it is.
    """

    def __init__(self, images: Sequence[SourceImage], size: int | None = None) -> None:
        self.images = list(images)
        self.transform, self.codec = JointTransform(size), RGBCodec()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LoadedImage:
        source = self.images[index]
        try:
            pixels = self.codec.read(source.path).values
        except UserError as error:
            return LoadedImage(source, problem=str(error).removeprefix(f"{source.path}: "))
        draw = self.transform.draw(*pixels.shape[:2])
        return LoadedImage(source, crop_and_resize(pixels, draw, self.codec), _view(pixels, draw))


def _view(pixels: np.ndarray, draw: Draw) -> np.ndarray:
    box = pixels[draw.top : draw.top + draw.crop_height, draw.left : draw.left + draw.crop_width]
    longest = max(box.shape[:2])
    if longest <= LABELLING_SIDE:
        return np.array(box)  # of its own: PyTorch warns of arrays that can't be written to
    height, width = (max(1, round(side * LABELLING_SIDE / longest)) for side in box.shape[:2])
    return np.array(Image.fromarray(box).resize((width, height), Image.Resampling.LANCZOS))


def fit_labels(labels: np.ndarray, modality: str, height: int, width: int) -> np.ndarray:
    """Resize a map (h, w[, C]) to (height, width[, C]).

    Smaller: the nearest pixel, for an average across an edge is no depth, no normal and no label. Larger: as the codec
    does, the nearest pixel for labels, between pixels for depth and normals, which stay of unit length.
    """
    source_height, source_width = labels.shape[:2]
    if (source_height, source_width) == (height, width):
        return labels
    codec = build_codec(MODALITIES[modality])
    if height < source_height or width < source_width:
        return codec.resize(labels, height, width)
    return codec.enlarge(labels, height, width)
