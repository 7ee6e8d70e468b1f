"""A video file as frames, through PyAV: MP4, QuickTime, Matroska, WebM, GIF and whatever else FFmpeg reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError, one_line
from mmdit.modalities.stored import check_pixels, regular_size
from mmdit.storage.digests import digest_file
from mmdit.video.frames import Frame, Video
from mmdit.video.library import load_av

USUAL_RATE = Fraction(25)  # where a file says nothing
_CUT_OFF = Fraction(1, 2)  # seconds that may lack at the end of what a file declares


class VideoFile(Video):
    """The first video stream of a file; sound and subtitles are passed over, rotation is applied, transparency laid on white.

    Raises:
        UserError: PyAV is missing, or the file is none that it reads, has no picture stream, or no frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        regular_size(path)
        self._av = load_av(path)
        with self._open() as (container, stream):
            check_pixels(path, stream.codec_context.height, stream.codec_context.width)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or USUAL_RATE)
            self._declared = self._seconds(container, stream)
            self.num_frames: int | None = stream.frames or None
            if self.num_frames is None and self._declared:
                self.num_frames = max(1, round(self._declared * self.rate))
        first = next(self.frames(), None)
        if first is None:
            reason = f": {self.problem}" if self.problem else ""
            raise UserError(
                f"{path}: the video holds no frame that can be read{reason}; it may be cut off: give another file"
            )
        self.size = first.pixels.shape[:2]

    def frames(self) -> Iterator[Frame]:
        """Decode from the beginning, in the order of display."""
        self.problem = None
        before: tuple[np.ndarray, Fraction] | None = None  # shown until the next one comes
        start, count, last = Fraction(0), 0, 1 / self.rate
        with self._open() as (container, stream):
            for decoded in self._decoded(container, stream):
                time = count / self.rate if decoded.pts is None else decoded.pts * Fraction(decoded.time_base)
                if before is None:
                    start = time
                elif time - start <= before[1]:  # stamps that stand still or go back: the next moment that can be told
                    time = start + before[1] + Fraction(1, 1000)
                if before is not None:
                    yield Frame(*before, time - start - before[1])
                if decoded.duration:
                    last = decoded.duration * Fraction(decoded.time_base)
                before, count = (self._pixels(decoded), time - start), count + 1
        if before is not None:
            yield Frame(*before, last)
            end = before[1] + last
            if self.problem is None and self._declared and end + _CUT_OFF < self._declared:
                self.problem = f"it ends after {float(end):.2f} s of {float(self._declared):.2f} s"

    def digest(self) -> str:
        """Of the file."""
        return digest_file(self.path)

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        try:
            container = self._av.open(str(self.path))
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise UserError(f"{self.path}: not a video that can be read, or cut off ({_reason(error)})") from None
        with container:
            cover = self._av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                found = ", ".join(sorted({stream.type for stream in container.streams if stream.type != "video"}))
                raise UserError(
                    f"{self.path}: has no video stream ({f'only {found}' if found else 'nothing'}); give a video"
                )
            if streams[0].codec_context is None:
                raise UserError(
                    f"{self.path}: its video is coded in a way that PyAV does not know; convert it to H.264"
                )
            streams[0].thread_type = "AUTO"
            yield container, streams[0]

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        try:
            yield from container.decode(stream)
        except (self._av.error.FFmpegError, OSError) as error:
            self.problem = f"the file is damaged or cut off ({_reason(error)})"

    def _seconds(self, container: Any, stream: Any) -> Fraction | None:
        """How long the video is by its own account; None = it gives none. The container's may be that of its sound."""
        if stream.duration:
            return stream.duration * Fraction(stream.time_base)
        if container.duration and len(container.streams) == 1:
            return Fraction(container.duration, self._av.time_base)
        return None

    def _pixels(self, decoded: Any) -> np.ndarray:
        """(H, W, 3) uint8, upright, all frames of the first one's size."""
        size = getattr(self, "size", None)
        turns = round(decoded.rotation / 90) % 4
        if any(component.is_alpha for component in decoded.format.components):
            values = decoded.to_ndarray(format="rgba").astype(np.float32)
            alpha = values[..., 3:] / 255
            pixels = np.round(values[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        else:
            pixels = decoded.to_ndarray(format="rgb24")
        pixels = np.ascontiguousarray(np.rot90(pixels, turns))
        if size is not None and pixels.shape[:2] != size:  # a stream may change its size, and players scale it
            from PIL import Image

            pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
        return pixels


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)
