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


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La", "RGBa"]
)
def test_files_and_pictures_in_memory_are_read_alike(tmp_path, rng, mode):
    source = Image.fromarray(rng.integers(0, 256, (6, 5, 4), dtype=np.uint8))
    steps = {"La": ["LA", "La"], "PA": ["P", "PA"], "RGBa": ["RGBA", "RGBa"]}.get(mode, [mode])
    image = source if mode in ("RGBA", "RGBa", "La") else source.convert("RGB")
    for step in steps:
        image = image.convert(step)
    read = RGBCodec().read(image).values
    assert (read.dtype, read.shape) == (np.uint8, (6, 5, 3))
    if mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), read)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 65535), (np.int32, 65535), (np.int32, 255), (">u2", 65535)])
def test_deep_grey_is_scaled_by_its_range(rng, dtype, top):
    grey = rng.integers(0, 256, (4, 6))
    grey[0, 0] = 255
    image = Image.fromarray((grey * (top // 255)).astype(dtype))
    np.testing.assert_array_equal(RGBCodec().read(image).values, grey[..., None].repeat(3, axis=-1))


def test_a_picture_is_turned_as_its_tag_says(tmp_path, rng):
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    reading = RGBCodec().read(tmp_path / "a.png")
    np.testing.assert_array_equal(reading.values, np.rot90(pixels, -1))
    assert reading.orientation == 6
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(RGBCodec().read(image).values, reading.values)
