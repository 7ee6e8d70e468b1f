from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.cli.common.inputs import find_images, find_videos, read_condition, source_name
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, Modality, Reading, build_codec

DEPTH = MODALITIES["depth"]  # disparity, quantiles 0.02 and 0.98
EXACT = DEPTH.replace(quantiles=[0.0, 1.0])


def read(path: Path, modality: Modality, **options: str) -> Reading:
    return read_condition(path, build_codec(modality), options)


def understood(path: Path, modality: Modality, **options: str) -> np.ndarray:
    """What the model is given, in the codec's raw values: depth relative in [0, 1]."""
    codec = build_codec(modality)
    return codec.decode(codec.encode_reading(read_condition(path, codec, options))[None])[0]


def _image(path, size=(4, 3), color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, color).save(path)
    return path


def test_images_of_one_name_are_told_apart(tmp_path):
    paths = [
        _image(tmp_path / "a" / "cat.png"),
        _image(tmp_path / "b" / "cat.png"),
        _image(tmp_path / "b" / "cat.bmp"),
        _image(tmp_path / "b" / "dog.png"),
    ]
    assert [file.name for file in find_images(paths)] == ["a_cat", "b_cat_png", "b_cat_bmp", "dog"]
    assert len(find_images([*paths, *paths])) == 4  # the same file twice is one input


def test_images_whose_full_names_agree_are_numbered(tmp_path):
    paths = [_image(tmp_path / top / "in" / "cat.png") for top in ("x", "y")]
    assert [file.name for file in find_images(paths)] == ["in_cat_png", "in_cat_png_2"]


def test_folder_is_listed_without_subfolders_and_suffixes_may_be_upper_case(tmp_path, capsys):
    _image(tmp_path / "in" / "b.png")
    _image(tmp_path / "in" / "a.JPG")
    _image(tmp_path / "in" / "sub" / "c.png")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    files = find_images([tmp_path / "in"])
    assert [(file.name, file.explicit) for file in files] == [("a", False), ("b", False)]
    assert f"name the folders whose images you want, such as {tmp_path / 'in' / 'sub'}" in capsys.readouterr().err


def test_no_images(tmp_path):
    with pytest.raises(UserError, match="no such image or folder"):
        find_images([tmp_path / "none"])
    for find in (find_images, lambda paths: find_videos(paths, folders=False, fps=None)):
        with pytest.raises(UserError, match=r"^https://x\.org/a\.mp4: is a URL: download it"):
            find(["https://x.org/a.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        find_images([tmp_path / "empty"])


def test_links_in_a_circle_are_listed_and_nothing_is_no_folder(tmp_path):
    _image(tmp_path / "a.png")
    for name in ("b.png", "b.jpg"):  # told apart by where they lead
        (tmp_path / name).symlink_to(name)
    assert [file.path.name for file in find_images([tmp_path])] == ["a.png", "b.jpg", "b.png"]
    with pytest.raises(UserError, match="an empty path is given"):
        find_images([""])


def test_source_name(tmp_path):
    assert source_name(tmp_path / "torus_0" / "depth.npy") == "torus_0"
    assert source_name(tmp_path / "depth" / "000003.png") == "000003"


def test_relative_npy_is_kept(tmp_path):
    depth = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "d.npy", depth)
    np.testing.assert_allclose(understood(tmp_path / "d.npy", EXACT), depth, atol=1e-6)
    assert "relative disparity" in read(tmp_path / "d.npy", EXACT).note


def test_metric_npy_becomes_disparity(tmp_path):
    metres = np.array([[1.0, 2.0], [4.0, 0.0]], dtype=np.float32)  # 0 = invalid, filled with the far end
    np.save(tmp_path / "d.npy", metres)
    array = understood(tmp_path / "d.npy", EXACT)
    np.testing.assert_allclose(array, [[1.0, (0.5 - 0.25) / 0.75], [0.0, 0.0]], atol=1e-6)


def test_unit_of_metric_depth_does_not_matter(tmp_path):
    millimetres = np.array([[1000, 2000], [4000, 8000]], dtype=np.uint16)
    Image.fromarray(millimetres).save(tmp_path / "d.png")
    np.save(tmp_path / "d.npy", millimetres / 1000)
    np.testing.assert_allclose(understood(tmp_path / "d.png", EXACT), understood(tmp_path / "d.npy", EXACT), atol=1e-6)


def test_our_own_files_are_relative_without_a_note(tmp_path):
    folder = tmp_path / "torus_0"
    folder.mkdir()
    depth = np.array([[0.0, 0.25], [0.75, 1.0]], dtype=np.float32)
    Image.fromarray((depth * 65535).round().astype(np.uint16)).save(folder / "depth.png")
    (folder / "metadata.json").write_text(json.dumps({"depth_space": "disparity"}))
    assert read(folder / "depth.png", EXACT).note is None
    np.testing.assert_allclose(understood(folder / "depth.png", EXACT), depth, atol=1e-4)
    with pytest.raises(UserError, match="holds relative disparity, this model takes relative depth"):
        read(folder / "depth.png", EXACT.replace(space="depth"))


def test_dataset_depth_is_metric_without_a_note(tmp_path):
    folder = tmp_path / "test" / "depth"
    folder.mkdir(parents=True)
    (tmp_path / "dataset.json").write_text("{}")
    Image.fromarray(np.array([[1000, 2000], [4000, 0]], dtype=np.uint16)).save(folder / "0.png")
    assert read(folder / "0.png", EXACT).note is None
    np.testing.assert_allclose(understood(folder / "0.png", EXACT), [[1.0, 1 / 3], [0.0, 0.0]], atol=1e-6)


def test_negative_distances_are_refused_and_relative_ones_are_not(tmp_path):
    np.save(tmp_path / "d.npy", np.array([[-1.0, 2.0], [3.0, -4.0]]))
    with pytest.raises(UserError, match=r"d\.npy: 2 of 4 pixels are negative: .*--depth_values relative"):
        read(tmp_path / "d.npy", EXACT)
    relative = understood(tmp_path / "d.npy", EXACT, depth_values="relative")
    np.testing.assert_allclose(relative, np.array([[3, 6], [7, 0]]) / 7, atol=1e-6)
    np.save(tmp_path / "z.npy", np.full((2, 2), -3.0))  # along a camera's own axis
    with pytest.raises(UserError, match=r"z\.npy: 4 of 4 pixels are negative"):
        read(tmp_path / "z.npy", EXACT)


def test_depth_values_option_wins(tmp_path):
    np.save(tmp_path / "d.npy", np.array([[0.5, 1.0], [0.25, 0.125]]))
    relative = understood(tmp_path / "d.npy", EXACT, depth_values="relative")
    metric = understood(tmp_path / "d.npy", EXACT, depth_values="metric")
    assert relative.argmax() == 1
    assert metric.argmax() == 3  # nearest = largest disparity


def test_nan_is_counted(tmp_path):
    depth = np.full((4, 4), 0.5)
    depth[0, :3] = np.nan
    np.save(tmp_path / "d.npy", depth)
    with pytest.raises(UserError, match="3 of 16 pixels are NaN or infinite"):
        read(tmp_path / "d.npy", DEPTH)
    normal = np.zeros((4, 4, 3))
    normal[1, 1, 0] = np.inf
    np.save(tmp_path / "n.npy", normal)
    with pytest.raises(UserError, match="1 of 16 pixels"):
        read(tmp_path / "n.npy", MODALITIES["normal"])


def test_normal_png_and_npy_agree(tmp_path):
    vectors = np.array([[[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0.6, 0, 0.8]]], dtype=np.float32)
    np.save(tmp_path / "n.npy", vectors)
    Image.fromarray(((vectors + 1) / 2 * 255).round().astype(np.uint8)).save(tmp_path / "n.png")
    np.testing.assert_allclose(
        understood(tmp_path / "n.png", MODALITIES["normal"]),
        understood(tmp_path / "n.npy", MODALITIES["normal"]),
        atol=1 / 127,
    )


def test_unknown_label_names_the_file(tmp_path):
    modality = MODALITIES["segmentation"].replace(classes=[{"id": 0, "name": "floor", "color": [0, 0, 0]}])
    _image(tmp_path / "s.png", color=7)
    with pytest.raises(UserError, match=r"s\.png: .*unknown label 7"):
        read(tmp_path / "s.png", modality)


@pytest.mark.parametrize("name", ["depth", "segmentation"])
def test_colour_picture_is_no_map(tmp_path, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "vis.png")
    with pytest.raises(UserError, match="one channel"):
        read(tmp_path / "vis.png", MODALITIES[name])


def test_condition_round_trips_through_the_codec(tmp_path):
    rng = np.random.default_rng(0)
    depth = rng.random((16, 16), dtype=np.float32)
    np.save(tmp_path / "d.npy", depth)
    codec = build_codec(DEPTH)
    once = understood(tmp_path / "d.npy", DEPTH)
    again = codec.decode(codec.encode(once, relative=True)[None])[0]
    # Reading clips at the quantiles; clipping twice moves them by less than one of the 256 pixels.
    np.testing.assert_allclose(again, once, atol=1e-3)
