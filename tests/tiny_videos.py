"""Small videos of four colours, written with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

COLOURS = np.array([(200, 40, 40), (40, 180, 60), (40, 60, 200), (220, 210, 60)], dtype=np.uint8)  # of the quarters
TURNED = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise -> a b c d of the matrix


def quarters(height: int = 32, width: int = 48) -> np.ndarray:
    """(H, W, 3) uint8: upper left, upper right, lower left, lower right."""
    rows, columns = np.arange(height) >= height // 2, np.arange(width) >= width // 2
    return COLOURS[2 * rows[:, None] + columns[None, :]]


def write(
    path: Path, frames: Sequence[np.ndarray], codec: str = "libx264", pts: Sequence[int] | None = None, **options: str
) -> Path:
    """Write frames at 10 per second, or at ``pts`` in hundredths of a second."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 100), 10 * number if pts is None else pts[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, clockwise: int) -> None:
    """Write how it is to be shown into the header of an MP4's track (ISO 14496-12, tkhd)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (65536 * value for value in TURNED[clockwise])
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
