"""Files that PyAV wrote, with what is wrong or unusual in them; frames against what was written."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from tiny_videos import quarters, turn, write

from mmdit.errors import UserError
from mmdit.video.file import VideoFile


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.gif", "gif")]
)
def test_frames_of_every_container(tmp_path, name, codec):
    shades = [np.clip(quarters() + np.uint8(8 * i), 0, 255) for i in range(4)]
    video = VideoFile(write(tmp_path / name, shades, codec))
    frames = list(video.frames())
    assert (video.size, video.rate, video.num_frames, len(frames)) == ((32, 48), 10, 4, 4)
    assert [frame.time for frame in frames] == [Fraction(i, 10) for i in range(4)]
    assert frames[-1].time + frames[-1].duration == Fraction(4, 10)
    for frame, shade in zip(frames, shades, strict=True):
        difference = np.abs(frame.pixels[4:12, 4:20].astype(int) - shade[4:12, 4:20])
        assert difference.mean() < (30 if codec == "gif" else 6)  # a GIF has 256 colours
    assert video.problem is None


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotation_is_applied(tmp_path, clockwise):
    path = write(tmp_path / "phone.mp4", [quarters()] * 2)
    turn(path, clockwise)
    video = VideoFile(path)
    expected = np.rot90(quarters(), -clockwise // 90)
    assert video.size == expected.shape[:2]
    assert np.abs(next(video.frames()).pixels.astype(int) - expected).mean() < 8


def test_variable_frame_rate_keeps_its_times(tmp_path):
    path = write(tmp_path / "vfr.mp4", [quarters()] * 4, pts=[0, 10, 70, 75])
    frames = list(VideoFile(path).frames())
    assert [float(frame.time) for frame in frames] == pytest.approx([0, 0.1, 0.7, 0.75])
    assert [float(frame.duration) for frame in frames[:3]] == pytest.approx([0.1, 0.6, 0.05])


def test_transparency_is_laid_on_white(tmp_path):
    images = [Image.new("RGBA", (16, 16), (0, 0, 0, 0)), Image.new("RGBA", (16, 16), (255, 0, 0, 255))]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    first, second = VideoFile(tmp_path / "a.gif").frames()
    assert (first.pixels == 255).all()
    assert (second.pixels == (255, 0, 0)).all()


def test_stream_that_changes_its_size_has_the_first_ones(tmp_path):
    parts = []
    for size in ((32, 48), (64, 96)):
        with av.open(str(tmp_path / "part.mpg"), "w", format="mpeg2video") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            for _ in range(12):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters(*size), format="rgb24")))
            container.mux(stream.encode(None))
        parts.append((tmp_path / "part.mpg").read_bytes())
    (tmp_path / "a.mpg").write_bytes(b"".join(parts))
    video = VideoFile(tmp_path / "a.mpg")
    frames = list(video.frames())
    assert len(frames) >= 23  # one may be lost between the parts
    assert all(np.median(np.abs(frame.pixels.astype(int) - quarters())) < 6 for frame in frames)
    assert all(frame.duration > 0 for frame in frames)


def test_cut_off_file_says_where_it_ends(tmp_path):
    noisy = np.random.default_rng(0).integers(0, 256, (30, 32, 48, 3), dtype=np.uint8)
    path = write(tmp_path / "a.mp4", list(noisy), movflags="faststart", codec="libx264")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    video = VideoFile(path)
    count = len(list(video.frames()))
    assert 5 < count < 25
    assert "cut off" in video.problem or "ends after" in video.problem


def test_bad_files(tmp_path):
    path = write(tmp_path / "a.mp4", [quarters()] * 8)
    content = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[:-300])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name, expected in {
        "cut.mp4": "cut off",
        "text.mp4": "not a video that can be read",
        "empty.mp4": "the file is empty",
        "sound.mp4": "has no video stream \\(only audio\\)",
        "none.mp4": "no such file",
    }.items():
        with pytest.raises(UserError, match=f"{name}: .*{expected}") as error:
            VideoFile(tmp_path / name)
        assert "\n" not in str(error.value)


def test_file_without_frames(tmp_path):
    """A header that declares a stream, and no more."""
    path = write(tmp_path / "a.mkv", [quarters()] * 2, "mpeg4")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\x1f\x43\xb6\x75") + 12])  # where the first cluster begins
    with pytest.raises(UserError, match=r"a\.mkv: the video holds no frame that can be read"):
        VideoFile(path)


def test_sound_is_passed_over(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        picture, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=8000)
        picture.height, picture.width, picture.pix_fmt = 32, 48, "yuv420p"
        for number in range(40):
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            wave.sample_rate, wave.pts = 8000, 1024 * number
            container.mux(sound.encode(wave))
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(quarters(), format="rgb24")
            frame.pts = number
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))
    video = VideoFile(tmp_path / "a.mp4")
    assert len(list(video.frames())) == video.num_frames == 3
    assert video.problem is None  # though the sound goes on
