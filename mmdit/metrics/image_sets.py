"""Many RGB images on disk, read in batches: an .npz as the field's evaluators exchange them, blocks of one, or a folder.

The .npz is ADM's: ``arr_0`` uint8 (N, H, W, 3), and for references perhaps ``mu, sigma, mu_s, sigma_s``, the statistics of
the whole data set. It is streamed, because 50,000 images of 256 x 256 are 10 GB; no object in it is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.lib import format as npy

from mmdit.errors import UserError, one_line
from mmdit.metrics.maps import batched
from mmdit.modalities.rgb import read_picture
from mmdit.modalities.stored import read_member
from mmdit.storage.files import atomic_file
from mmdit.storage.listing import IMAGE_SUFFIXES, list_images

STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
BLOCKS = "blocks"


class ImageSet(Protocol):
    """``batches`` yields uint8 (B, H, W, 3); ``statistics`` may hold some of ``STATISTICS``; ``name`` is for messages."""

    name: str
    statistics: dict[str, np.ndarray]

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[np.ndarray]: ...


def open_images(path: Path) -> ImageSet:
    """Open an .npz file, a folder of ``mmdit samples``, or a folder of image files (searched with its subfolders).

    Raises:
        UserError: nothing there, or none of these; unfinished samples.
    """
    if path.is_file():
        return NpzImages(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give an .npz file or a folder of images")
    if (path / BLOCKS).is_dir():
        found = sorted(path.glob("samples_*.npz"))
        if len(found) == 1:
            return NpzImages(found[0])
        raise UserError(f"{path}: the samples are not complete yet; run 'mmdit samples' with this --output again")
    return FolderImages(path)


class FolderImages:
    """Image files of one size, in the order of their paths. Raises UserError if the folder has none."""

    def __init__(self, folder: Path) -> None:
        self.name, self.statistics = str(folder), {}
        self.paths = [folder / name for name in list_images(folder, recursive=True)]
        if not self.paths:
            raise UserError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")

    name: str
    statistics: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Raises UserError for an image that can't be read, or one of another size than the first."""
        size = None
        for paths in batched(self.paths, batch_size):
            images = [read_picture(path) for path in paths]
            for path, image in zip(paths, images, strict=True):
                size = size or image.shape
                if image.shape != size:
                    raise UserError(
                        f"{path}: has {image.shape[0]} x {image.shape[1]} pixels, {self.paths[0]} {size[0]} x {size[1]}: "
                        "resize them alike first, because the method changes the result"
                    )
            yield np.stack(images)


class NpzImages:
    """``arr_0`` of an .npz file, streamed, and its statistics.

    Raises:
        UserError: no .npz, or one without images and without statistics, of another type or shape, or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.statistics: dict[str, np.ndarray] = {}
        self.shape: tuple[int, ...] = (0, 0, 0, 3)
        try:
            with zipfile.ZipFile(path) as archive:
                members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
                size = path.stat().st_size
                self.statistics = {
                    name: read_member(path, archive, members[name], size) for name in STATISTICS if name in members
                }
        except UserError:
            raise
        except Exception as error:  # zipfile and numpy raise anything for a damaged file
            raise UserError(f"{path}: not a readable .npz file: {one_line(error)}") from None
        if "arr_0" in members:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                self.shape = self._read_header(file)
        elif not self.statistics:
            raise UserError(f"{path}: holds {', '.join(sorted(members)) or 'nothing'}; images are in arr_0")

    def _read_header(self, file: IO[bytes]) -> tuple[int, ...]:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise UserError(f"{self.path}: arr_0 is not a readable array: {error}") from None
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran:
            raise UserError(f"{self.path}: arr_0 holds {dtype} {shape}; give uint8 (images, height, width, 3)")
        return shape

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Raises UserError where the file ends early."""
        if not len(self):
            return
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            shape = self._read_header(file)
            size = int(np.prod(shape[1:]))
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                try:
                    content = file.read(count * size)
                except (EOFError, zipfile.BadZipFile, OSError) as error:
                    raise UserError(f"{self.path}: truncated or damaged: {error}") from None
                if len(content) != count * size:
                    raise UserError(f"{self.path}: truncated: arr_0 ends within image {start + len(content) // size}")
                yield np.frombuffer(content, dtype=np.uint8).reshape(count, *shape[1:])


def write_npz(path: Path, images: Iterable[np.ndarray], shape: Sequence[int], labels: np.ndarray | None = None) -> None:
    """Write ADM's .npz without holding the images in memory; the file appears whole.

    Args:
        path: replaced if there.
        images: batches uint8 (B, H, W, 3) that make up ``shape``.
        shape: (N, H, W, 3).
        labels: int64 (N,), stored as arr_1 as ADM's own samplers do.
    """

    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(int(n) for n in shape)}
            npy.write_array_header_1_0(member, header)
            for batch in images:
                member.write(np.ascontiguousarray(batch).tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w") as member:
                npy.write_array(member, labels, allow_pickle=False)
