"""Depth of other programs: near or far is white, 8 or 16 bits, RGB, floats; read rightly, said, or asked about."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.depth import DepthCodec
from mmdit.modalities.depth_values import invert_depth, vertical_trend

SCENES = sorted((Path(__file__).parents[2] / "mmdit/assets/scenes64_examples/test/depth").glob("*.png"))
METRES = [np.asarray(Image.open(path)) / 2000 for path in SCENES]


def unit(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def write_exr(path: Path, values: np.ndarray) -> None:
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"RGB": np.stack([values] * 3, axis=-1)}) as file:
        file.write(str(path))


def write(path: Path, kind: str, values: np.ndarray) -> Path:
    """Values in [0, 1] as a file of a kind."""
    eight, sixteen = (values * 255).round().astype(np.uint8), (values * 65535).round().astype(np.uint16)
    path = path / f"{kind}.{kind.split('_')[-1]}"
    if kind == "exr":
        write_exr(path, values.astype(np.float32))
    elif kind == "npy":
        np.save(path, values.astype(np.float32))
    else:
        pixels = {"eight": eight, "sixteen": sixteen, "float": values.astype(np.float32)}[kind.split("_")[0]]
        image = Image.fromarray(pixels)
        image = image.convert(kind.split("_")[1]) if "RGB" in kind else image
        image.save(path, **({"quality": 95} if kind.endswith("jpg") else {}))
    return path


KINDS = ["eight_png", "eight_jpg", "eight_RGB_png", "eight_RGBA_png", "sixteen_png", "sixteen_tif", "float_tif", "npy"]
if importlib.util.find_spec("OpenEXR"):
    KINDS.append("exr")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["depth", "disparity"])
def test_either_end_may_be_white(tmp_path, kind, space):
    codec = DepthCodec(space, (0, 1))
    for metres in METRES[::3]:
        for white, picture in (("near_white", unit(1 / metres)), ("far is white", unit(metres))):
            reading = codec.read(write(tmp_path, kind, picture))
            expected = codec.encode(picture if (white == "near_white") == (space == "disparity") else -picture, True)
            torch.testing.assert_close(
                codec.encode_reading(reading), expected, atol=0.3 if "jpg" in kind else 0.01, rtol=0
            )
            assert white in reading.note
            assert "lower part, which is usually nearer" in reading.note
            assert f"{kind}." in reading.note
    with Image.open(tmp_path / "eight_png.png") if kind == "eight_png" else Image.new("L", (2, 2)) as image:
        assert "depth_values can say otherwise" in codec.read(image).note  # a picture in Python


def test_a_picture_that_tells_nothing_is_a_guess_and_says_so(tmp_path):
    flat = np.tile(np.linspace(0, 1, 32), (32, 1))
    for kind, read_as in (
        ("eight_png", "relative disparity"),
        ("npy", "relative disparity"),
        ("sixteen_png", "distances"),
    ):
        note = DepthCodec().read(write(tmp_path, kind, flat)).note
        assert f"read as {read_as}" in note
        assert "a guess: nothing tells which end is near; --depth_values can say otherwise" in note


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_numbers_that_the_picture_contradicts_are_asked_about(tmp_path, suffix):
    near_white = 1000 + unit(1 / METRES[0]) * 30000
    path = tmp_path / f"d.{suffix}"
    if suffix == "png":
        Image.fromarray(near_white.astype(np.uint16)).save(path)
    else:
        np.save(path, near_white)
    message = rf"d\.{suffix}: holds numbers like distances, but they grow towards the bottom.*--depth_values near_white"
    with pytest.raises(UserError, match=message):
        DepthCodec().read(path)
    assert DepthCodec().read(path, {"depth_values": "near_white"}).note is None
    assert not DepthCodec().read(path, {"depth_values": "metric"}).relative
    assert "distances" in DepthCodec().read(_copy(SCENES[0], tmp_path)).note


def _copy(path: Path, folder: Path) -> Path:
    (folder / path.name).write_bytes(path.read_bytes())
    return folder / path.name


def test_colours_are_no_depth(tmp_path):
    Image.fromarray(DepthCodec("depth").truth_picture(METRES[0])).save(tmp_path / "vis.png")
    with pytest.raises(UserError, match=r"vis\.png: a depth map has one channel .* mode 'RGB' and is not grey"):
        DepthCodec().read(tmp_path / "vis.png")


def test_what_renderers_write_where_nothing_was_hit_is_far(tmp_path):
    metres = METRES[0].astype(np.float32)
    metres[:5] = 1e10
    np.save(tmp_path / "z.npy", metres)
    codec = DepthCodec("depth", (0, 1))
    reading = codec.read(tmp_path / "z.npy")
    assert "320 of 4096 pixels are infinitely far" in reading.note
    assert not codec.check_given(reading)
    read = codec.encode_reading(reading)
    assert (read[:, :5] == 1).all()
    assert read[:, 5:].std() > 0.3  # the rest is not squeezed together
    np.save(tmp_path / "half.npy", np.where(metres > 1e9, np.inf, metres).clip(max=65504).astype(np.float16))
    torch.testing.assert_close(codec.encode_reading(codec.read(tmp_path / "half.npy")), read, atol=2e-3, rtol=0)


def test_near_and_far_change_places():
    relative = np.array([[0.0, 0.25, np.nan, 1.0]], np.float32)
    np.testing.assert_array_equal(invert_depth(relative), np.array([[1, 0.75, np.nan, 0]], np.float32))
    assert invert_depth(relative).dtype == np.float32
    masked = invert_depth(np.ma.array([1.0, 2, 9], mask=[False, False, True]))
    assert masked.tolist() == [2, 1, None]
    assert invert_depth(torch.tensor([0.0, 1.0]).bfloat16()).tolist() == [1, 0]
    np.testing.assert_array_equal(invert_depth(np.array([1.0, 2, 5])), [5, 4, 1])
    assert torch.equal(invert_depth(torch.tensor([0.0, 1.0])), torch.tensor([1.0, 0.0]))
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        image = Image.fromarray(np.array([[0, 7, 200]], dtype))
        turned = invert_depth(image)
        assert turned.mode == image.mode
        np.testing.assert_array_equal(np.asarray(turned), [[top, top - 7, top - 200]])
        np.testing.assert_array_equal(np.asarray(invert_depth(turned)), np.asarray(image))
    with pytest.raises(UserError, match="depth to invert is bool"):
        invert_depth(np.ones((2, 2), bool))


def test_trend():
    ramp = np.tile(np.arange(32.0)[:, None], (1, 20))
    assert vertical_trend(ramp) == pytest.approx(1)
    assert vertical_trend(-ramp) == pytest.approx(-1)
    assert vertical_trend(ramp[:8]) == 0
    assert vertical_trend(np.ones((32, 32))) == 0
    ramp[3, 4] = np.nan
    assert vertical_trend(ramp) == pytest.approx(1)
    assert all(0.5 < vertical_trend(-metres) < 0.95 for metres in METRES)
