"""Depth: metres, relative maps, and which is which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.depth import DepthCodec


def test_depth_is_the_affine_map_of_its_quantiles():
    metres = np.linspace(2.0, 6.0, 101).reshape(1, 101)  # quantile q is 2 + 4 q
    values = DepthCodec("depth", (0.1, 0.9)).encode(metres)[0, 0].numpy()
    np.testing.assert_allclose(values, np.clip((metres[0] - 4.0) / 1.6, -1, 1), atol=1e-6)


def test_disparity_is_near_bright_and_far_dark(rng):
    metres = rng.uniform(1, 10, (8, 8))
    values = DepthCodec("disparity", (0, 1)).encode(metres)[0].numpy()
    low, high = 1 / metres.max(), 1 / metres.min()
    np.testing.assert_allclose(values, 2 * (1 / metres - low) / (high - low) - 1, atol=1e-5)
    assert values.argmax() == metres.argmin()


@pytest.mark.parametrize("space", ["depth", "disparity"])
def test_depth_decode_inverts_encode_and_feeds_back(space, rng):
    metres = rng.uniform(1, 10, (8, 8)).astype(np.float32)
    codec = DepthCodec(space, (0, 1))
    encoded = codec.encode(metres)
    relative = codec.decode(encoded[None])[0]
    assert relative.dtype == np.float32
    assert relative.min() == 0
    assert relative.max() == 1
    torch.testing.assert_close(codec.encode(relative, relative=True), encoded, atol=1e-6, rtol=0)
    torch.testing.assert_close(codec.encode(7 * relative - 3, relative=True), encoded, atol=1e-5, rtol=0)


def test_metric_depth_scale_does_not_matter_in_either_space(rng):
    metres = rng.uniform(1, 10, (8, 8))
    for space in ("depth", "disparity"):
        codec = DepthCodec(space)
        torch.testing.assert_close(codec.encode(metres), codec.encode(1000 * metres), atol=1e-5, rtol=0)


@pytest.mark.parametrize("invalid", [0.0, -1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("space", "far"), [("depth", 1.0), ("disparity", -1.0)])
def test_invalid_depth_is_filled_with_far_and_leaves_the_rest_alone(space, far, invalid):
    metres = np.array([[1.0, 2.0, 3.0, invalid]])
    codec = DepthCodec(space, (0, 1))
    encoded = codec.encode(metres)
    assert encoded[0, 0, 3] == far
    torch.testing.assert_close(encoded[..., :3], codec.encode(metres[:, :3]))


def test_zero_is_a_value_in_a_relative_map():
    encoded = DepthCodec("disparity", (0, 1)).encode(np.array([[0.0, 0.5, 1.0, np.nan]]), relative=True)
    assert encoded[0, 0].tolist() == [-1, 0, 1, -1]


@pytest.mark.parametrize("value", [1e-3, 2.0, 5e4])
def test_constant_depth_is_the_middle(value):
    assert torch.equal(DepthCodec().encode(np.full((4, 4), value)), torch.zeros(3, 4, 4))


def test_integer_depth_is_accepted():
    assert torch.equal(
        DepthCodec("depth", (0, 1)).encode(np.array([[1, 2, 3]], np.uint16))[0, 0], torch.tensor([-1.0, 0.0, 1.0])
    )


@pytest.mark.parametrize(
    "raw", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.ones((4, 4, 3)), np.array([["a"]]), np.ones((0, 4))]
)
def test_depth_refuses_wrong_input(raw):
    with pytest.raises(UserError, match="depth map"):
        DepthCodec().encode(raw)


def test_depth_refuses_wrong_settings():
    with pytest.raises(UserError, match="'metric'"):
        DepthCodec("metric")
    for quantiles in [(0.5, 0.5), (0.9, 0.1), (-0.1, 1), (0, 1.5), (0, 0.5, 1)]:
        with pytest.raises(UserError, match="quantiles"):
            DepthCodec("depth", quantiles)


def test_depth_is_scaled_to_metres(tmp_path, load, save):
    units = np.array([[0, 1, 40_000]], np.uint16)
    np.testing.assert_allclose(load(save(tmp_path / "d.png", units), "depth"), [[0, 0.001, 40]], rtol=1e-6)
    np.save(tmp_path / "d.npy", np.array([[1.5, 2.5]], np.float64))
    loaded = load(tmp_path / "d.npy", "depth")
    assert loaded.dtype == np.float32
    assert loaded.tolist() == [[1.5, 2.5]]


def _lightness(rgb):
    return rgb.astype(float) @ [0.299, 0.587, 0.114]


def test_near_is_bright_in_both_spaces():
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    disparity, depth = DepthCodec("disparity").picture(ramp), DepthCodec("depth").picture(ramp)
    assert (np.diff(_lightness(disparity)[0]) > -1).all()  # 8-bit rounding aside, lightness rises all the way
    assert _lightness(disparity)[0, -1] > _lightness(disparity)[0, 0] + 150
    np.testing.assert_array_equal(depth[:, ::-1], disparity)


def test_depth_colours_take_values_out_of_range():
    assert DepthCodec().picture(np.array([[-1.0, 2.0, np.nan]])).shape == (1, 3, 3)


def _marked(path: Path, relative: np.ndarray, space: str) -> Path:
    path.write_bytes(DepthCodec(space).files(relative)["depth.png"])
    return path


@pytest.mark.parametrize("space", ["depth", "disparity"])
def test_our_own_picture_is_relative_wherever_it_is(tmp_path, space):
    relative = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))
    path = _marked(tmp_path / "moved.png", relative, space)
    codec = DepthCodec(space, (0, 1))
    expected = codec.encode(relative, relative=True)
    with Image.open(path) as image:
        for reading in (codec.read(path), codec.read(image)):
            assert reading.relative
            assert reading.note is None
            torch.testing.assert_close(codec.encode_reading(reading), expected, atol=1e-4, rtol=0)
    other = DepthCodec("depth" if space == "disparity" else "disparity")
    with pytest.raises(UserError, match=f"holds relative {space}, this model takes relative {other.space}"):
        other.read(path)
    with pytest.raises(UserError, match=r"holds relative depth .* give depth in metres"):
        codec.read(path, {"depth_scale": 0.001})


def test_what_auto_guesses_is_said_of_files_and_pictures(tmp_path, rng):
    millimetres = rng.integers(1000, 9000, (4, 6)).astype(np.uint16)
    for content, kind in (
        (millimetres, "distances"),
        (millimetres.astype(np.int32), "distances"),
        (millimetres.astype(np.float32), "distances"),
        (millimetres.astype(np.float32) / 9000, "relative disparity"),
        ((millimetres // 40).astype(np.uint8), "relative disparity"),
    ):
        path = tmp_path / ("d.tif" if content.dtype.itemsize == 4 else "d.png")
        Image.fromarray(content).save(path)
        np.save(tmp_path / "d.npy", content)
        for source in (path, Image.open(path), tmp_path / "d.npy"):
            reading = DepthCodec().read(source)
            assert f"read as {kind}" in reading.note
            assert "depth_values can say otherwise" in reading.note
            assert reading.relative is (kind != "distances")
        assert DepthCodec().read(content).note is None  # of an array the documentation says which is which


def test_depth_values_say_what_a_map_holds(rng):
    near_white = rng.random((4, 6)).astype(np.float32)
    for space, sign in (("disparity", 1), ("depth", -1)):
        codec = DepthCodec(space, (0, 1))
        read = codec.encode_reading(codec.read(near_white, {"depth_values": "near_white"}))
        torch.testing.assert_close(read, sign * codec.encode(near_white, relative=True), atol=1e-5, rtol=0)
        relative = codec.encode_reading(codec.read(5 * near_white, {"depth_values": "relative"}))
        torch.testing.assert_close(relative, codec.encode(near_white, relative=True), atol=1e-5, rtol=0)
        metric = codec.encode_reading(codec.read(near_white, {"depth_values": "metric"}))
        torch.testing.assert_close(metric, codec.encode(near_white))
    with pytest.raises(UserError, match="unknown depth_values 'white'"):
        DepthCodec().read(near_white, {"depth_values": "white"})


def test_float_images_are_metres_of_a_dataset(tmp_path, rng):
    metres = rng.uniform(1, 9, (4, 6)).astype(np.float32)
    Image.fromarray(metres).save(tmp_path / "D.TIFF")
    np.testing.assert_array_equal(DepthCodec().read(tmp_path / "D.TIFF", {"depth_scale": 0.001}).values, metres)
