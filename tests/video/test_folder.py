from __future__ import annotations

from fractions import Fraction

import pytest
from PIL import Image

from mmdit.errors import UserError
from mmdit.video.folder import FrameFolder


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    for number in (1, 2, 10):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"frame_{number}.png")
    video = FrameFolder(tmp_path, 25)
    frames = list(video.frames())
    assert [frame.pixels[0, 0, 0] for frame in frames] == [1, 2, 10]
    assert [frame.time for frame in frames] == [Fraction(i, 25) for i in range(3)]
    assert (video.size, video.num_frames) == ((4, 6), 3)
    before = video.digest()
    Image.new("RGB", (6, 4)).save(tmp_path / "frame_11.png")
    assert FrameFolder(tmp_path, 25).digest() != before


@pytest.mark.parametrize("rate", [1e-9, 0, -24, 1e9, float("nan")])
def test_a_rate_that_no_video_has(tmp_path, rate):
    Image.new("RGB", (6, 4)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"fps is .*: give 0\.01 to 1000 frames per second"):
        FrameFolder(tmp_path, rate)


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        FrameFolder(tmp_path)
    Image.new("RGB", (6, 4)).save(tmp_path / "1.png")
    Image.new("RGB", (8, 4)).save(tmp_path / "2.png")
    with pytest.raises(UserError, match=r"2\.png: is 4 x 8 \(height x width\), the first frame 4 x 6"):
        FrameFolder(tmp_path)
    (tmp_path / "2.png").write_text("x")
    with pytest.raises(UserError, match=r"2\.png: not an image"):
        FrameFolder(tmp_path)
