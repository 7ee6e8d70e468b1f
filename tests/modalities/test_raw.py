import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.modality import MODALITIES
from mmdit.modalities.raw import load_raw, load_rgb


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(array, mode=mode).save(path) if mode else Image.fromarray(array).save(path)
    return path


def test_rgb_is_read_as_it_is(tmp_path, rng):
    raw = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(load_rgb(_save(tmp_path / "a.png", raw)), raw)


def test_grey_palette_and_16_bit_images_become_rgb(tmp_path, rng):
    grey = rng.integers(0, 256, (4, 6), dtype=np.uint8)
    expected = grey[..., None].repeat(3, axis=2)
    assert np.array_equal(load_rgb(_save(tmp_path / "grey.png", grey)), expected)
    assert np.array_equal(load_rgb(_save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)), expected)
    Image.fromarray(expected).quantize(256).save(tmp_path / "palette.png")
    assert np.abs(load_rgb(tmp_path / "palette.png").astype(int) - expected).max() <= 4
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    assert np.array_equal(load_rgb(tmp_path / "bits.png"), (expected > 127) * np.uint8(255))


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = [10, 20, 30, 255]
    loaded = load_rgb(_save(tmp_path / "a.png", rgba))
    assert loaded[0, 0].tolist() == [10, 20, 30]
    assert loaded[1, 1].tolist() == [255, 255, 255]


def test_depth_is_scaled_to_metres(tmp_path):
    units = np.array([[0, 1, 40_000]], np.uint16)
    np.testing.assert_allclose(
        load_raw(_save(tmp_path / "d.png", units), MODALITIES["depth"], depth_scale=0.001), [[0, 0.001, 40]], rtol=1e-6
    )
    np.save(tmp_path / "d.npy", np.array([[1.5, 2.5]], np.float64))
    loaded = load_raw(tmp_path / "d.npy", MODALITIES["depth"], depth_scale=0.001)
    assert loaded.dtype == np.float32
    assert loaded.tolist() == [[1.5, 2.5]]


def test_normals_are_near_unit_after_8_bits(tmp_path, rng):
    normals = rng.normal(size=(6, 6, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    stored = np.round((normals + 1) / 2 * 255).astype(np.uint8)
    assert np.abs(load_raw(_save(tmp_path / "n.png", stored), MODALITIES["normal"]) - normals).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_ids(tmp_path, dtype):
    labels = np.array([[0, 3], [7, 200]], dtype)
    loaded = load_raw(_save(tmp_path / "s.png", labels), MODALITIES["segmentation"])
    assert loaded.dtype == np.int64
    assert loaded.tolist() == labels.tolist()


def test_labels_of_a_palette_image_are_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 2], [1, 2]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "s.png")
    assert load_raw(tmp_path / "s.png", MODALITIES["segmentation"]).tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("name", ["depth", "segmentation"])
def test_three_channels_are_no_map(tmp_path, name):
    with pytest.raises(UserError, match=r"a\.png.*one channel.*'RGB'"):
        load_raw(_save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8)), MODALITIES[name])


def test_grey_is_no_normal_map(tmp_path):
    with pytest.raises(UserError, match="three 8-bit channels"):
        load_raw(_save(tmp_path / "a.png", np.zeros((2, 2), np.uint8)), MODALITIES["normal"])


def test_broken_files_are_named(tmp_path, rng, monkeypatch):
    good = _save(tmp_path / "good.png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    for name, reason in [("gone", "no such file"), ("empty", "empty"), ("text", "not an image"), ("cut", "truncated")]:
        with pytest.raises(UserError, match=rf"{name}\.png.*{reason}"):
            load_rgb(tmp_path / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1024 pixels only warn in Pillow, 2 x the limit raises
    with pytest.raises(UserError, match=r"good\.png.*more than 1000 pixels"):
        load_rgb(good)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2)), np.array(["a"]), np.zeros(4), np.zeros((0, 2))])
def test_npy_of_the_wrong_kind_is_named(tmp_path, array):
    np.save(tmp_path / "d.npy", array)
    with pytest.raises(UserError, match=r"d\.npy"):
        load_raw(tmp_path / "d.npy", MODALITIES["depth"])


def test_floats_are_no_rgb_and_the_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.tiff: an RGB image of 32-bit floats"):
        load_rgb(_save(tmp_path / "a.tiff", np.zeros((2, 2), np.float32)))


def test_npy_that_is_text_or_beyond_float32(tmp_path):
    (tmp_path / "text.npy").write_text("1.0 2.0")
    with pytest.raises(UserError, match=r"text\.npy: not a readable \.npy array: no array of numbers$"):
        load_raw(tmp_path / "text.npy", MODALITIES["depth"])
    np.save(tmp_path / "d.npy", np.array([[1e300, 2.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_raw(tmp_path / "d.npy", MODALITIES["depth"]).tolist() == [[np.inf, 2.0]]


def test_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"d\.npy"):
        load_raw(tmp_path / "d.npy", MODALITIES["depth"])
