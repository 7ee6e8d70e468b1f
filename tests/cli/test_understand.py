"""Videos and folders of frames through ``mmdit understand``; pictures are in ``test_generate.py``."""

from __future__ import annotations

import json
import shutil
import sys
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from tiny_videos import quarters, write

from mmdit.video.file import VideoFile

LUMA = np.array([0.2126, 0.7152, 0.0722])
MAPS = ("depth", "normal", "segmentation")
SAMPLE_FILES = {
    *("rgb.png", "depth.npy", "depth.png", "depth_vis.png", "normal.npy", "normal.png", "segmentation.png"),
    *("grid.png", "metadata.json"),
}


def shifted(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    return [np.roll(quarters(height, width), 3 * i, axis=1) for i in range(count)]


@pytest.fixture
def clip(tmp_path):
    """5 frames at uneven times, in hundredths of a second."""
    return write(tmp_path / "clip.mp4", shifted(5), pts=[0, 10, 20, 60, 70])


def test_video(mmdit, tiny_pipeline_dir, tmp_path, clip):
    result = mmdit("understand", clip, "--model", tiny_pipeline_dir, "--batch_size", 2)
    folder = tmp_path / "outputs" / "understand" / "clip"
    assert result.code == 0, result.err
    assert result.out.split() == [f"outputs/understand/clip/{name}.mp4" for name in MAPS]
    assert {path.name for path in folder.iterdir()} == {
        *(f"00000{i}" for i in range(5)),
        *(f"{name}.mp4" for name in MAPS),
        "metadata.json",
    }
    assert {path.name for path in (folder / "000003").iterdir()} == SAMPLE_FILES
    assert np.load(folder / "000003" / "depth.npy").shape == (32, 48)
    source = [(frame.time, frame.duration) for frame in VideoFile(clip).frames()]
    for name in MAPS:
        video = VideoFile(folder / f"{name}.mp4")
        frames = list(video.frames())
        assert video.size == (32, 48)
        assert [(frame.time, frame.duration) for frame in frames] == source
        suffix = "_vis" if name == "depth" else ""
        drawn = np.asarray(Image.open(folder / "000004" / f"{name}{suffix}.png").convert("RGB"))
        assert (
            np.median(np.abs((frames[4].pixels - drawn.astype(float)) @ LUMA)) < 8
        )  # colours have half the resolution
    metadata = json.loads((folder / "000003" / "metadata.json").read_text())
    assert metadata["frame"] == pytest.approx({"number": 3, "time": 0.6, "duration": 0.1})
    assert json.loads((folder / "metadata.json").read_text())["num_frames"] == 5
    # the same again replaces itself; another request is refused
    assert mmdit("understand", clip, "--model", tiny_pipeline_dir).code == 0
    refused = mmdit("understand", clip, "--model", tiny_pipeline_dir, "--temporal", 0)
    assert refused.code == 2
    assert "temporal was 0.6, now 0" in refused.error
    assert "--overwrite" in refused.error


@pytest.mark.skipif(find_spec("OpenEXR") is None, reason="needs OpenEXR")
def test_openexr_of_frames(mmdit, tiny_pipeline_dir, tmp_path, clip):
    command = ("understand", clip, "--model", tiny_pipeline_dir, "--exr")
    refused = mmdit(*command, "--frame_files", "false")
    assert refused.code == 2
    assert "--exr is of each frame's files, which --frame_files false leaves out" in refused.error
    assert mmdit(*command).code == 0
    frame = tmp_path / "outputs" / "understand" / "clip" / "000004"
    assert {path.name for path in frame.iterdir()} == SAMPLE_FILES | {"depth.exr", "normal.exr"}


def test_frames_do_not_depend_on_temporal_company(mmdit, tiny_pipeline_dir, tmp_path, clip):
    """With temporal 0 each frame is what the picture alone is."""
    assert mmdit("understand", clip, "--model", tiny_pipeline_dir, "--temporal", 0).code == 0
    frame = tmp_path / "outputs" / "understand" / "clip" / "000002"
    shutil.copy(frame / "rgb.png", tmp_path / "alone.png")
    assert mmdit("understand", "alone.png", "--model", tiny_pipeline_dir).code == 0
    alone = np.load(tmp_path / "outputs" / "understand" / "alone" / "depth.npy")
    np.testing.assert_allclose(np.load(frame / "depth.npy"), alone, atol=1e-4)


@pytest.mark.parametrize("frame_files", ["true", "false"])
def test_interrupted_video_goes_on(mmdit, tiny_pipeline_dir, tmp_path, clip, monkeypatch, frame_files):
    """As without the interruption, and no frame is computed twice but those of the batch that was under way."""
    from mmdit.cli.common import videos

    command = ("understand", clip, "--model", tiny_pipeline_dir, "--batch_size", 1, "--frame_files", frame_files)
    assert mmdit(*command, "--output", "whole").code == 0
    understood = []
    run = videos.run_pipeline

    def interrupted(*arguments, **inputs):
        understood.append(1)
        if len(understood) == 4:
            raise KeyboardInterrupt
        return run(*arguments, **inputs)

    monkeypatch.setattr(videos, "run_pipeline", interrupted)
    assert mmdit(*command, "--output", "parts").code == 130
    parts = tmp_path / "parts" / "clip"
    assert not (parts / "depth.mp4").exists()
    result = mmdit(*command, "--output", "parts")
    assert result.code == 0
    assert "goes on after 3 frames" in result.err
    assert len(understood) == 3 + 1 + 2
    whole = tmp_path / "whole" / "clip"
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}
    for name in MAPS:
        assert (parts / f"{name}.mp4").read_bytes() == (whole / f"{name}.mp4").read_bytes()
    if frame_files == "true":
        np.testing.assert_array_equal(np.load(parts / "000004" / "depth.npy"), np.load(whole / "000004" / "depth.npy"))
    else:
        assert {path.suffix for path in parts.iterdir()} == {".mp4", ".json"}


def test_folder_of_frames(mmdit, tiny_pipeline_dir, tmp_path):
    (tmp_path / "walk").mkdir()
    for number, pixels in enumerate(shifted(3, 30, 40)):
        Image.fromarray(pixels).save(tmp_path / "walk" / f"{number + 8}.png")  # 10 comes last
    result = mmdit("understand", "walk", "--video", "--fps", 5, "--model", tiny_pipeline_dir)
    assert result.code == 0, result.err
    folder = tmp_path / "outputs" / "understand" / "walk"
    frames = list(VideoFile(folder / "depth.mp4").frames())
    assert [frame.time for frame in frames] == [Fraction(i, 5) for i in range(3)]
    np.testing.assert_array_equal(
        np.asarray(Image.open(folder / "000002" / "rgb.png")), np.asarray(Image.open(tmp_path / "walk" / "10.png"))
    )
    # without --video it is a folder of pictures, as ever
    assert mmdit("understand", "walk", "--model", tiny_pipeline_dir, "--output", "pictures").code == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["10", "8", "9"]
    # fewer frames replace more
    (tmp_path / "walk" / "10.png").unlink()
    again = mmdit("understand", "walk", "--video", "--fps", 5, "--model", tiny_pipeline_dir, "--overwrite")
    assert again.code == 0, again.err
    assert not (folder / "000002").exists()


def test_pictures_and_videos_of_one_name_are_told_apart(mmdit, tiny_pipeline_dir, tmp_path, clip):
    Image.fromarray(quarters()).save(tmp_path / "clip.png")
    gif = [Image.fromarray(quarters()), Image.fromarray(quarters()[::-1])]
    gif[0].save(tmp_path / "moving.gif", save_all=True, append_images=gif[1:], duration=100)
    gif[0].save(tmp_path / "still.gif")
    result = mmdit("understand", "clip.png", clip, "moving.gif", "still.gif", "--model", tiny_pipeline_dir,
                   "--match_input_size", "false", "--ensemble_size", 2)  # fmt: skip
    assert result.code == 0, result.err
    made = tmp_path / "outputs" / "understand"
    names = sorted(path.name for path in made.iterdir())
    assert len(names) == 4
    assert {"moving", "still"} < set(names)
    assert VideoFile(made / "moving" / "normal.mp4").size == (64, 64)
    assert (made / "moving" / "000001" / "depth_uncertainty.npy").is_file()


def test_cut_off_video_is_understood_as_far_as_it_goes(mmdit, tiny_pipeline_dir, tmp_path):
    noisy = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    path = write(tmp_path / "cut.mp4", list(noisy), movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = mmdit("understand", path, "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert "cut.mp4: " in result.err.splitlines()[-1]
    assert "the frames before are in outputs/understand" in result.err.splitlines()[-1]
    assert (tmp_path / "outputs" / "understand" / "cut" / "depth.mp4").is_file()


def test_bad_input_is_one_line(mmdit, tiny_pipeline_dir, tmp_path, clip, photo):
    (tmp_path / "text.mp4").write_text("x" * 100)
    (tmp_path / "clips").mkdir()
    shutil.copy(clip, tmp_path / "clips" / "one.mp4")
    for arguments, expected in {
        ("text.mp4",): "text.mp4: not a video that can be read",
        (clip, "--temporal", 1): "--temporal is 1: give a number from 0 to below 1",
        (photo, "--fps", 5): "--fps is 5, and no folder of frames is a video",
        ("clips",): "name its videos, such as clips/one.mp4",
        ("clips", "--video"): "the folder holds no image",
        (clip, "none.mp4"): "none.mp4: no such image or folder",
    }.items():
        result = mmdit("understand", *arguments, "--model", tiny_pipeline_dir)
        assert result.code == 2, arguments
        assert expected in result.error
    kept = tmp_path / "outputs" / "understand" / "clip"
    kept.mkdir(parents=True)
    (kept / "mine.txt").write_text("x")
    result = mmdit("understand", clip, "--model", tiny_pipeline_dir)
    assert (result.code, "holds 'mine.txt'" in result.error) == (2, True)


def test_missing_library_is_named(mmdit, tiny_pipeline_dir, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    result = mmdit("understand", clip, "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert "clip.mp4: videos need a library: pip install 'multimodal-dit[video]'" in result.error


def test_model_that_never_saw_photographs_says_so(mmdit, tiny_pipeline_dir, tmp_path, photo):
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_dir, folder)
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\nphotographs: false\n---\n# A card\n")
    result = mmdit("understand", photo, "--model", folder)
    assert result.code == 0
    assert result.err.count("never saw a photograph") == 1
    refused = mmdit("understand", photo, "--model", folder, "--seed", 1)  # an error stands alone
    assert refused.code == 2
    assert refused.err.splitlines() == [refused.error]
    frames = tmp_path / "frames"
    frames.mkdir()
    for i in range(2):
        shutil.copy(photo, frames / f"{i}.png")
    as_video = ("understand", frames, "--model", folder, "--video")
    assert mmdit(*as_video).err.count("never saw a photograph") == 1
    refused = mmdit(*as_video, "--seed", 1)
    assert refused.code == 2
    assert refused.err.splitlines() == [refused.error]
    # not of rendered scenes, nor where the card doesn't say so
    dataset = tmp_path / "scenes"
    (dataset / "test" / "rgb").mkdir(parents=True)
    shutil.copy(photo, dataset / "test" / "rgb" / "000.png")
    (dataset / "dataset.json").write_text('{"provenance": {"generator": "mmdit data render"}}')
    assert "photograph" not in mmdit("understand", dataset / "test" / "rgb", "--model", folder).err
    assert "photograph" not in mmdit("understand", photo, "--model", tiny_pipeline_dir, "--overwrite").err
