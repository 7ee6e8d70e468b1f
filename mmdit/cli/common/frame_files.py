"""The files of a video's frames: whole samples, or pictures alone that last until the videos are written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmdit.cli.common.output import Sample, SampleWriter, prepare_folder
from mmdit.errors import UserError
from mmdit.modalities import IMAGE, build_codecs
from mmdit.modalities.files import png
from mmdit.modalities.rgb import read_picture
from mmdit.names import METADATA
from mmdit.storage.files import writing_folder
from mmdit.storage.json_object import json_bytes, read_object

Pictures = dict[str, np.ndarray]
_DIGITS = 6
_PICTURE_BYTES = 3  # per pixel; PNG seldom needs all of it


class FrameFiles:
    """Pictures of each frame in a hidden folder, which ``close`` removes.

    Args:
        writer: of the video's folder.
    """

    HIDDEN: ClassVar[str] = ".frames"

    def __init__(self, writer: SampleWriter) -> None:
        self.writer = writer
        self.codecs = build_codecs(writer.modalities)
        self.names = [name for name in writer.modalities if name != IMAGE]

    def check(self, request: Mapping[str, Any], num_pixels: int) -> None:
        """Check before the computation that the frames of a request can be written, ``num_pixels`` in all.

        Raises:
            UserError: results of another request, or a full disk.
        """
        for folder in (self.writer.output, self.folder(0)):
            if not self.writer.overwrite and (folder / METADATA).is_file():
                self.writer.refuse_other(folder, request)
        self._check_room(num_pixels)

    def folder(self, number: int) -> Path:
        """Where the files of a frame are."""
        return self.writer.output / self.HIDDEN / f"{number:0{_DIGITS}d}"

    def has(self, number: int) -> bool:
        """Whether a frame is there."""
        return (self.folder(number) / METADATA).is_file()

    def write(
        self, number: int, arrays: Pictures, request: Mapping[str, Any], uncertainty: Mapping[str, np.ndarray]
    ) -> None:
        """Write the files of one frame, raw arrays, whole or not at all. Raises UserError where the disk does not take them."""
        with writing_folder(self.folder(number)) as temporary:
            for name in self.names:
                (temporary / f"{name}.png").write_bytes(png(self.codecs[name].picture(arrays[name])))
            (temporary / METADATA).write_bytes(json_bytes(dict(request)))

    def place(self, number: int) -> dict[str, float]:
        """time and duration of a frame that is there, in seconds."""
        place: dict[str, float] = read_object(self.folder(number) / METADATA)["frame"]
        return place

    def pictures(self, number: int) -> Pictures:
        """What a frame looks like: modality -> (H, W, 3) uint8. Raises UserError for files that were damaged meanwhile."""
        return {name: read_picture(self.folder(number) / f"{name}.png") for name in self.names}

    def close(self) -> None:
        """The videos are written."""
        shutil.rmtree(self.writer.output / self.HIDDEN, ignore_errors=True)

    def _check_room(self, num_pixels: int) -> None:
        prepare_folder(self.writer.output, num_pixels * _PICTURE_BYTES * len(self.names))


class FrameSamples(FrameFiles):
    """Each frame a sample's folder, which stays."""

    def folder(self, number: int) -> Path:
        return self.writer.output / f"{number:0{_DIGITS}d}"

    def has(self, number: int) -> bool:
        return super().has(number) and all((self.folder(number) / name).is_file() for name in self.writer.exr_names)

    def write(
        self, number: int, arrays: Pictures, request: Mapping[str, Any], uncertainty: Mapping[str, np.ndarray]
    ) -> None:
        self.writer.write(Sample(self.folder(number).name, arrays, request, uncertainty))

    def pictures(self, number: int) -> Pictures:
        pictures = {}
        for name in self.names:
            codec, folder = self.codecs[name], self.folder(number)
            suffix = ".npy" if f"{name}.npy" in codec.file_names() else ".png"
            pictures[name] = codec.picture(codec.read(folder / f"{name}{suffix}").values)
        return pictures

    def _check_room(self, num_pixels: int) -> None:
        try:
            self.writer.check({}, num_pixels)
        except UserError as error:
            raise UserError(f"{error}, or give --frame_files false, which takes far less") from None
