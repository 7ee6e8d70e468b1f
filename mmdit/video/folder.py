"""A folder of images as a video: its frames in the order of the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from mmdit.errors import UserError
from mmdit.modalities.rgb import read_picture
from mmdit.storage.digests import digest_files
from mmdit.storage.listing import IMAGE_SUFFIXES, list_images
from mmdit.video.frames import Frame, Video

FRAME_RATE = 24.0
LEAST_RATE, MOST_RATE = 0.01, 1000.0  # a frame of minutes, and what a file's clock still tells apart


class FrameFolder(Video):
    """The images of a folder, all of one size.

    Args:
        path: the folder; its subfolders are not searched.
        rate: frames per second.

    Raises:
        UserError: a rate that no video has, no image, one that can't be read, or one of another size.
    """

    def __init__(self, path: Path, rate: float = FRAME_RATE) -> None:
        if not LEAST_RATE <= rate <= MOST_RATE:
            raise UserError(f"fps is {rate:g}: give {LEAST_RATE:g} to {MOST_RATE:g} frames per second")
        self.path = path
        self.rate = Fraction(rate).limit_denominator(1001)
        self.files = [path / name for name in sorted(list_images(path), key=by_number)]
        self.num_frames: int | None = len(self.files)
        if not self.files:
            kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            raise UserError(f"{path}: the folder holds no image (subfolders are not searched); give frames as {kinds}")
        self.size = read_picture(self.files[0]).shape[:2]
        for file in self.files[1:]:
            height, width = read_picture(file).shape[:2]
            if (height, width) != self.size:
                first = f"{self.size[0]} x {self.size[1]}"
                raise UserError(
                    f"{file}: is {height} x {width} (height x width), the first frame {first}: give one size"
                )

    def frames(self) -> Iterator[Frame]:
        """Read the images, each shown as long as any other."""
        for number, file in enumerate(self.files):
            yield Frame(read_picture(file), number / self.rate, 1 / self.rate)

    def digest(self) -> str:
        """Of names and files."""
        return digest_files(self.path, self.files)


def by_number(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name
