"""Pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.rgb import RGBCodec, read_picture


def test_rgb_round_trip_is_exact_for_every_8_bit_value():
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    encoded = RGBCodec().encode(raw)
    assert encoded.dtype == torch.float32
    assert encoded.min() == -1
    assert encoded.max() == 1
    assert np.array_equal(RGBCodec().decode(encoded[None])[0], raw)


def test_rgb_floats_and_clipping():
    assert torch.equal(RGBCodec().encode(np.full((2, 3, 3), 0.25)), torch.full((3, 2, 3), -0.5))
    assert RGBCodec().decode(torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1)).tolist() == [[[[0, 255, 128]]]]


@pytest.mark.parametrize(
    "raw",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.int32),
        np.full((4, 4, 3), 1.5),
        np.full((4, 4, 3), np.nan),
    ],
)
def test_rgb_refuses_wrong_input(raw):
    with pytest.raises(UserError, match="RGB image"):
        RGBCodec().encode(raw)


def test_decode_refuses_unbatched_images():
    with pytest.raises(UserError, match="batch"):
        RGBCodec().decode(torch.zeros(3, 4, 4))


def test_rgb_is_read_as_it_is(tmp_path, rng, save):
    raw = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(read_picture(save(tmp_path / "a.png", raw)), raw)


def test_grey_palette_and_16_bit_images_become_rgb(tmp_path, rng, save):
    grey = rng.integers(0, 256, (4, 6), dtype=np.uint8)
    expected = grey[..., None].repeat(3, axis=2)
    assert np.array_equal(read_picture(save(tmp_path / "grey.png", grey)), expected)
    assert np.array_equal(read_picture(save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)), expected)
    Image.fromarray(expected).quantize(256).save(tmp_path / "palette.png")
    assert np.abs(read_picture(tmp_path / "palette.png").astype(int) - expected).max() <= 4
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    assert np.array_equal(read_picture(tmp_path / "bits.png"), (expected > 127) * np.uint8(255))


def test_transparent_pixels_are_white(tmp_path, save):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = [10, 20, 30, 255]
    loaded = read_picture(save(tmp_path / "a.png", rgba))
    assert loaded[0, 0].tolist() == [10, 20, 30]
    assert loaded[1, 1].tolist() == [255, 255, 255]


def test_floats_are_no_rgb_and_the_file_is_named(tmp_path, save):
    with pytest.raises(UserError, match=r"a\.tiff: an RGB image of 32-bit floats"):
        read_picture(save(tmp_path / "a.tiff", np.zeros((2, 2), np.float32)))
