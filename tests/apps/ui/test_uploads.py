"""Uploads, drawings and painted pictures -> what the pipeline takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.apps.ui.limits import Limits
from mmdit.apps.ui.uploads import has_picture, is_drawn, read_edit, read_given, read_image, read_subject, read_upload
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codecs
from mmdit.modalities.files import npy

LIMITS = Limits(megapixels=1, side=100)
CODECS = build_codecs(MODALITIES)


def drawing(stroke: tuple[slice, slice] | None, size: int = 64, color: tuple[int, int, int] = (255, 255, 255)) -> dict:
    paper = Image.new("RGBA", (size, size), (0, 0, 0, 255))
    layer = np.zeros((size, size, 4), dtype=np.uint8)
    if stroke is not None:
        layer[stroke] = (*color, 255)
    layers = [Image.fromarray(layer)]
    return {"background": paper, "layers": layers, "composite": Image.alpha_composite(paper, layers[0])}


def given(files: dict, drawings: dict | None = None, **options: object) -> dict:
    every = dict.fromkeys(CODECS) | (drawings or {})
    return read_given(CODECS, files, every, native=(32, 48), limits=LIMITS, options=options)


def test_a_file_is_read_by_its_codec_and_shrunk(tmp_path: Path):
    values = np.linspace(0, 1, 200 * 50, dtype=np.float32).reshape(50, 200)
    path = tmp_path / "mine.npy"
    path.write_bytes(npy(values))
    reading = read_upload(path, CODECS["depth"], LIMITS)
    assert reading.relative
    assert reading.values.shape == (25, 100)
    assert reading.note is not None
    assert str(tmp_path) not in reading.note
    assert "'A depth file holds'" in reading.note


def test_errors_name_the_file_as_its_owner_does(tmp_path: Path):
    path = tmp_path / "mine.png"
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^mine\.png: not an image"):
        read_image(path, LIMITS)
    Image.new("L", (1100, 1000)).save(path)
    with pytest.raises(UserError, match=r"^mine\.png: has 1100 x 1000 pixels: give at most 1 million"):
        read_image(path, LIMITS)


def test_an_image_that_declares_more_than_pillow_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "bomb.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"^bomb\.png: has too many pixels: give at most 1 million"):
        read_image(path, LIMITS)


def test_drawings_have_the_size_of_files_or_the_models(tmp_path: Path):
    path = tmp_path / "rgb.png"
    Image.new("RGB", (40, 20)).save(path)
    drawn = {"depth": drawing((slice(0, 32), slice(None)))}
    alone = given({"depth": None}, drawn)
    assert alone["depth"].values.shape == (32, 48)
    both = given({"depth": None, "rgb": str(path)}, drawn)
    assert list(both) == ["rgb", "depth"]
    assert both["depth"].values.shape == (20, 40)
    encoded = CODECS["depth"].encode_reading(both["depth"])[0]
    assert (encoded[:10] == 1).all()  # disparity: what is white is near
    assert (encoded[10:] == -1).all()


def test_a_file_comes_before_a_drawing(tmp_path: Path):
    path = tmp_path / "depth.npy"
    path.write_bytes(npy(np.full((8, 8), 3.0, dtype=np.float32)))
    read = given({"depth": str(path)}, {"depth": drawing((slice(0, 32), slice(None)))}, depth_values="metric")
    assert (read["depth"].values == 3).all()
    assert not read["depth"].relative


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "nothing is given: choose at least one modality"),
        (dict.fromkeys(CODECS), "all modalities are given"),
        ({"depth": None}, "depth is chosen as given, and has neither a file nor a drawing"),
    ],
)
def test_what_can_not_be_given(files, message):
    with pytest.raises(UserError, match=message):
        given(files, {"depth": drawing(None)})


def test_files_that_are_not_aligned(tmp_path: Path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    Image.new("L", (30, 20)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"differ in size \(height x width\): rgb 20 x 40, depth 20 x 30"):
        given({"rgb": str(tmp_path / "a.png"), "depth": str(tmp_path / "b.png")})


def test_a_painted_picture_is_a_picture_and_a_mask():
    painted = drawing((slice(10, 20), slice(30, 50)), size=200)
    picture, inside = read_edit(painted, LIMITS)
    assert picture.size == (100, 100)
    assert inside.dtype == bool
    expected = np.zeros((100, 100), dtype=bool)
    expected[5:10, 15:25] = True
    np.testing.assert_array_equal(inside, expected)
    assert is_drawn(painted)
    assert not is_drawn(None)


@pytest.mark.parametrize(
    ("painted", "message"),
    [
        (None, "there is no picture to edit"),
        ({"background": None, "layers": [], "composite": None}, "there is no picture to edit"),
        (drawing(None), "nothing is painted"),
        (drawing((slice(0, 1), slice(0, 1)), size=1100), "the picture: has 1100 x 1100 pixels"),
    ],
)
def test_nothing_to_edit(painted, message):
    with pytest.raises(UserError, match=message):
        read_edit(painted, LIMITS)


def test_a_subject_is_a_picture_and_what_is_painted_of_it():
    picture, inside = read_subject(drawing((slice(10, 20), slice(30, 50))), LIMITS)
    assert picture.size == (64, 64)
    expected = np.zeros((64, 64), dtype=bool)
    expected[10:20, 30:50] = True
    np.testing.assert_array_equal(inside, expected)
    whole = read_subject(drawing(None), LIMITS)
    assert isinstance(whole, Image.Image)  # without a mask: all of it
    with pytest.raises(UserError, match="the picture: has 1100 x 1100 pixels"):
        read_subject(drawing(None, size=1100), LIMITS)
    assert has_picture(drawing(None))
    assert not has_picture(None)
    assert not has_picture({"background": Image.new("RGBA", (8, 8)), "layers": [], "composite": None})
