"""Files, opened safely."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.rgb import read_picture


@pytest.mark.parametrize("name", ["depth", "segmentation"])
def test_three_channels_are_no_map(tmp_path, name, load, save):
    with pytest.raises(UserError, match=r"a\.png.*one channel.*'RGB'"):
        load(save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8)), name)


def test_broken_files_are_named(tmp_path, rng, monkeypatch, save):
    good = save(tmp_path / "good.png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    for name, reason in [("gone", "no such file"), ("empty", "empty"), ("text", "not an image"), ("cut", "truncated")]:
        with pytest.raises(UserError, match=rf"{name}\.png.*{reason}"):
            read_picture(tmp_path / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1024 pixels only warn in Pillow, 2 x the limit raises
    with pytest.raises(UserError, match=r"good\.png.*more than 1000 pixels"):
        read_picture(good)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2)), np.array(["a"]), np.zeros(4), np.zeros((0, 2))])
def test_npy_of_the_wrong_kind_is_named(tmp_path, array, load):
    np.save(tmp_path / "d.npy", array)
    with pytest.raises(UserError, match=r"d\.npy"):
        load(tmp_path / "d.npy", "depth")


def test_npy_that_is_text_or_beyond_float32(tmp_path, load):
    (tmp_path / "text.npy").write_text("1.0 2.0")
    with pytest.raises(UserError, match=r"text\.npy: not a readable \.npy array: no array of numbers$"):
        load(tmp_path / "text.npy", "depth")
    np.save(tmp_path / "d.npy", np.array([[1e300, 2.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "d.npy", "depth").tolist() == [[np.inf, 2.0]]


def test_pickled_npy_is_refused(tmp_path, load):
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"d\.npy"):
        load(tmp_path / "d.npy", "depth")
