"""Writes a video file: MP4, H.264, which browsers and players show, with the times of the frames it is made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError
from mmdit.storage.files import atomic_file
from mmdit.video.library import load_av

SUFFIX = ".mp4"
TIME_BASE = Fraction(1, 90_000)  # seconds; the usual frame rates are whole numbers of it
_CODEC, _QUALITY = "libx264", "14"  # nearly all that can be seen
_BT709, _LIMITED = 1, 1


class VideoWriter:
    """Frames go in one by one; ``open`` makes one.

    H.264 has even sides: where one is odd, the last row or column stands twice.
    """

    def __init__(self, av: Any, container: Any, size: tuple[int, int], rate: Fraction) -> None:
        self._av, self._container = av, container
        height, width = (side + side % 2 for side in size)
        options = {"crf": _QUALITY, "bf": "0"}  # packets in the order of the frames
        self._stream = container.add_stream(_CODEC, rate=rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = TIME_BASE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._durations: deque[int] = deque()

    @classmethod
    @contextmanager
    def open(cls, path: Path, size: tuple[int, int], rate: Fraction) -> Iterator[VideoWriter]:
        """A file that appears when the block ends without an error.

        Args:
            path: of the file, which is replaced.
            size: (height, width) of the frames, in pixels.
            rate: frames per second, on average.

        Raises:
            UserError: PyAV is missing or can't write H.264, or the disk does not take the file.
        """
        av = load_av(path)
        if _CODEC not in av.codecs_available:
            raise UserError(
                f"{path}: this PyAV can't write H.264 ({_CODEC}): pip install 'multimodal-dit[video]' has it"
            )
        with atomic_file(path) as file, av.open(file, "w", format="mp4") as container:
            writer = cls(av, container, size, rate)
            yield writer
            writer._finish()

    def write(self, pixels: np.ndarray, time: Fraction, duration: Fraction) -> None:
        """Add a frame, (H, W, 3) uint8, shown from ``time`` on for ``duration``, in seconds; times rise."""
        height, width = pixels.shape[:2]
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.time_base, frame.pts = TIME_BASE, round(time / TIME_BASE)
        self._durations.append(round((time + duration) / TIME_BASE) - frame.pts)
        self._mux(self._stream.encode(frame))

    def _finish(self) -> None:
        self._mux(self._stream.encode(None))

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            packet.duration = self._durations.popleft()
            self._container.mux(packet)
