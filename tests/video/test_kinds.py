from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny_videos import quarters, write

from mmdit.video.kinds import is_video


def test_content_tells_before_the_name(tmp_path):
    write(tmp_path / "a.mp4", [quarters()] * 2).rename(tmp_path / "no_suffix")
    write(tmp_path / "b.mkv", [quarters()] * 2, "mpeg4").rename(tmp_path / "b.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.mp4")
    (tmp_path / "damaged.mov").write_bytes(b"x" * 100)
    (tmp_path / "text.txt").write_text("x")
    found = {path.name: is_video(path) for path in tmp_path.iterdir()}
    assert found == {"no_suffix": True, "b.png": True, "photo.mp4": False, "damaged.mov": True, "text.txt": False}


@pytest.mark.parametrize("count", [1, 3])
def test_gif_of_one_picture_is_a_picture(tmp_path, count):
    images = [Image.fromarray(np.full((4, 4), 60 * i, np.uint8)) for i in range(count)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    assert is_video(tmp_path / "a.gif") == (count > 1)
    assert not is_video(tmp_path / "none.gif")
