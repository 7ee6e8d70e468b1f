"""A folder of images as it comes: class folders such as ImageNet's, or flat; read, cropped, and labels fitted to them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mmdit.data.transforms import Draw, JointTransform, crop_and_resize
from mmdit.errors import UserError, one_line
from mmdit.modalities import MODALITIES, build_codec
from mmdit.modalities.rgb import RGBCodec
from mmdit.storage.file_state import FileState, read_state
from mmdit.storage.listing import IMAGE_SUFFIXES, list_images
from mmdit.storage.names import number_repeats, shorten, text_of

PNG = ".png"
MAX_STEM = 240  # bytes; with ".png" and a temporary name's ends it stays below 255
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
    """``rgb``: (H, W, 3) uint8 to store; ``view``: (h, w, 3) uint8 to label, the same box; or the ``problem``.

    ``state``: of the file, read before its pixels.
    """

    source: SourceImage
    state: FileState | None = None
    rgb: np.ndarray | None = None
    view: np.ndarray | None = None
    problem: str = ""


def find_images(root: str | Path) -> list[SourceImage]:
    """List the images below a folder, sorted; the first folder on the way to an image is its category.

    Hidden files, and files without an image's suffix, are left alone. Images whose names differ in the suffix
    alone keep it in their ids, and no two ids are the same, whatever the names. Ids and categories are text under any
    locale: a byte of a name that is not UTF-8 is "%E9" in them.

    Raises:
        UserError: no such folder, or no image in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"--images {str(root)!r}: no such folder; give a folder of images, or of class folders")
    names = sorted(list_images(root, recursive=True))
    if not names:
        raise UserError(f"--images {str(root)!r}: no image in it ({', '.join(IMAGE_SUFFIXES)})")
    tops = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    categories = dict(zip(tops, number_repeats([text_of(top) for top in tops], ignore_case=False), strict=True))
    return [
        SourceImage(sample_id, f"{root}/{name}", categories[name.split("/", 1)[0]] if "/" in name else None)
        for name, sample_id in zip(names, _ids(names), strict=True)
    ]


def _ids(names: Sequence[str]) -> list[str]:
    whole = [_within_limits(text_of(name)) for name in names]
    stems = [_within_limits(text_of(os.path.splitext(name)[0])) for name in names]
    folders = {name.rsplit("/", 1)[0] for name in stems if "/" in name}
    folders |= {folder[:end] for folder in folders for end, char in enumerate(folder) if char == "/"}
    count = Counter(stems)
    # A stem that others share, or whose file would be a folder of others.
    ids = [w if count[s] > 1 or f"{s}{PNG}" in folders else s for s, w in zip(stems, whole, strict=True)]
    count = Counter(ids)  # a.png, a.jpg and a.png.png: the last one's stem is the first one's whole name
    ids = [w if count[i] > 1 else i for i, w in zip(ids, whole, strict=True)]
    return number_repeats(ids, ignore_case=False)


def _within_limits(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + shorten(last, last, MAX_STEM)


class ImagesToLabel(Dataset):
    """Map-style dataset of ``LoadedImage``; an image that can't be read has its ``problem`` and no pixels.

    Args:
        images: which.
        size: of the box that is cropped from the centre and resized to it, one number for a square or (height, width); None =
            the whole image unchanged.
    """

    def __init__(self, images: Sequence[SourceImage], size: int | tuple[int, int] | None = None) -> None:
        self.images = list(images)
        self.transform, self.codec = JointTransform(size), RGBCodec()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LoadedImage:
        source = self.images[index]
        state = read_state(source.path)
        try:
            pixels = self.codec.read(source.path).values
        except UserError as error:
            return LoadedImage(source, problem=str(error).removeprefix(f"{source.path}: "))
        except Exception as error:  # whatever a file holds, the others are labelled
            reason = one_line(error, 200)
            return LoadedImage(source, problem=f"can't be read: {type(error).__name__}: {reason}")
        draw = self.transform.draw(*pixels.shape[:2])
        return LoadedImage(source, state, crop_and_resize(pixels, draw, self.codec), _view(pixels, draw))


def _view(pixels: np.ndarray, draw: Draw) -> np.ndarray:
    box = pixels[draw.top : draw.top + draw.crop_height, draw.left : draw.left + draw.crop_width]
    longest = max(box.shape[:2])
    if longest <= LABELLING_SIDE:
        return np.array(box)  # a copy: PyTorch warns of arrays that can't be written to
    height, width = (max(1, round(side * LABELLING_SIDE / longest)) for side in box.shape[:2])
    return np.array(Image.fromarray(box).resize((width, height), Image.Resampling.LANCZOS))


def fit_labels(labels: np.ndarray, modality: str, height: int, width: int) -> np.ndarray:
    """Resize a map (h, w[, C]) to (height, width[, C]).

    Smaller: the nearest pixel, because an average across an edge belongs to neither side. Larger: as the codec
    does, the nearest pixel for labels, between pixels for depth and normals, which stay of unit length.
    """
    source_height, source_width = labels.shape[:2]
    if (source_height, source_width) == (height, width):
        return labels
    codec = build_codec(MODALITIES[modality])
    if height < source_height or width < source_width:
        return codec.resize(labels, height, width)
    return codec.enlarge(labels, height, width)
