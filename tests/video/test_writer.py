from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from tiny_videos import quarters

from mmdit.errors import UserError
from mmdit.video.file import VideoFile
from mmdit.video.writer import VideoWriter


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_what_is_written_is_read_back(tmp_path, size):
    times = [Fraction(0), Fraction(1001, 30000), Fraction(3, 10), Fraction(1, 2)]
    ends = [*times[1:], Fraction(9, 10)]
    pixels = quarters(*size)
    with VideoWriter.open(tmp_path / "a.mp4", size, Fraction(24)) as writer:
        for time, end in zip(times, ends, strict=True):
            writer.write(pixels, time, end - time)
    video = VideoFile(tmp_path / "a.mp4")
    frames = list(video.frames())
    assert video.size == tuple(side + side % 2 for side in size)
    assert [frame.time for frame in frames] == times
    assert frames[-1].time + frames[-1].duration == ends[-1]
    assert np.median(np.abs(frames[0].pixels[: size[0], : size[1]].astype(int) - pixels)) < 3  # colours too


def test_file_is_one_that_browsers_show(tmp_path):
    with VideoWriter.open(tmp_path / "a.mp4", (32, 48), Fraction(24)) as writer:
        writer.write(quarters(), Fraction(0), Fraction(1))
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.format.name, context.colorspace) == ("h264", "yuv420p", 1)


def _write_and_stop(path):
    with VideoWriter.open(path, (32, 48), Fraction(24)) as writer:
        writer.write(quarters(), Fraction(0), Fraction(1))
        raise KeyboardInterrupt


def test_interrupted_file_does_not_appear(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _write_and_stop(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_library_without_h264_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", frozenset({"mpeg4"}))
    with (
        pytest.raises(UserError, match=r"can't write H\.264"),
        VideoWriter.open(tmp_path / "a.mp4", (2, 2), Fraction(1)),
    ):
        pass
