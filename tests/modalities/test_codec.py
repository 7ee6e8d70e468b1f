"""What all codecs share: sizes, turns, and the plain map that the base class is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities import CODECS, MODALITIES, Codec, Reading, build_codecs
from mmdit.modalities.orientation import turn_pixels, turn_together

BUILT = build_codecs(MODALITIES)


def test_resizing_outputs():
    labels = np.array([[0, 7], [4, 4]])
    resized = BUILT["segmentation"].resize_output(labels, 4, 4)
    np.testing.assert_array_equal(resized, labels.repeat(2, 0).repeat(2, 1))
    normal = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
    resized = BUILT["normal"].resize_output(normal, 9, 7)
    assert resized.shape == (9, 7, 3)
    np.testing.assert_allclose(np.linalg.norm(resized, axis=-1), 1, atol=1e-5)
    depth = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    resized = BUILT["depth"].resize_output(depth, 6, 8)
    assert resized.shape == (6, 8)
    assert 0 <= resized.min() <= resized.max() <= 1
    assert BUILT["depth"].resize_output(depth, 4, 4) is depth
    grey = np.full((4, 4, 3), 7, np.uint8)
    assert (BUILT["rgb"].resize_output(grey, 9, 5) == np.full((9, 5, 3), 7)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_are_those_of_pillow(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    methods = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    methods |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    image = Image.fromarray(pixels)
    expected = image if orientation == 1 else image.transpose(Image.Transpose[methods[orientation]])
    np.testing.assert_array_equal(turn_pixels(pixels, orientation), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_normals_are_those_of_the_turned_surface(orientation):
    """Heights of a smooth surface, turned, and its normals by finite differences, against normals turned."""
    y, x = np.mgrid[0:40, 0:40] / 40.0
    height = np.sin(3 * x) * 0.3 + x * y - 0.2 * y**2

    def normals(z: np.ndarray) -> np.ndarray:
        down, right = np.gradient(z, 1 / 40)
        vectors = np.stack([-right, down, np.ones_like(z)], axis=-1)  # x right, y up, z towards the viewer
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    turned = BUILT["normal"].turn(normals(height), orientation)
    np.testing.assert_allclose(turned, normals(turn_pixels(height, orientation)), atol=1e-9)


def test_maps_are_turned_with_their_image_where_their_size_says_so():
    image = Reading(np.zeros((64, 48, 3), np.uint8), orientation=6)  # 64 wide and 48 high as stored
    stored, seen = np.random.default_rng(0).random((48, 64)), np.zeros((64, 48))
    settled = turn_together({"rgb": image, "depth": Reading(stored), "segmentation": Reading(seen)}, BUILT)
    np.testing.assert_array_equal(settled["depth"].values, np.rot90(stored, -1))
    assert settled["segmentation"].values is seen
    again = turn_together(settled, BUILT)
    assert again["depth"].values is settled["depth"].values  # once is enough


def test_a_map_whose_size_cannot_tell_is_refused():
    for orientation, shape in ((6, (64, 64)), (3, (48, 64)), (2, (48, 64))):
        image = Reading(np.zeros((*shape, 3), np.uint8), orientation=orientation)
        with pytest.raises(UserError, match=f"rgb has EXIF orientation {orientation}, .* whether depth is turned"):
            turn_together({"rgb": image, "depth": Reading(np.ones(shape))}, BUILT)
        turn_together({"rgb": image, "depth": Reading(np.ones(shape), as_seen=True)}, BUILT)
        turn_together({"rgb": image, "depth": Reading(np.ones(shape), orientation=orientation)}, BUILT)


def test_the_base_is_a_plain_map():
    codec = Codec()
    raw = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    encoded = codec.encode(raw)
    torch.testing.assert_close(encoded, torch.from_numpy(raw * 2 - 1).expand(3, -1, -1))
    np.testing.assert_allclose(codec.decode(encoded[None])[0], raw, atol=1e-6)
    for bits, top in ((np.uint8, 255), (np.uint16, 65535)):
        image = Image.fromarray((raw * top).round().astype(bits))
        np.testing.assert_allclose(codec.read(image).values, raw, atol=0.6 / top)
    assert codec.check(Reading(raw)) == []
    assert codec.check(Reading(raw + 1)) == ["spans [1.0, 2.0]: give values in [0, 1]"]
    assert codec.check(Reading(np.full((2, 2), np.nan))) == ["4 values are NaN or infinite"]
    with pytest.raises(UserError, match=r"a map: spans \[1.0, 2.0\]"):
        codec.encode(raw + 1)
    np.testing.assert_allclose(codec.read(Image.fromarray(codec.pixels(raw))).values, raw, atol=1e-4)
    assert codec.picture(raw).shape == (3, 4, 3)


def test_batches_and_layouts_of_maps():
    codec = BUILT["depth"]
    one = np.random.default_rng(0).random((4, 6))
    for given in (one, one[None], one[None, None], one[..., None], one[None, ..., None], [one], torch.from_numpy(one)):
        singles = codec.split(given)
        assert len(singles) == 1
        np.testing.assert_allclose(np.asarray(singles[0]), one, atol=1e-6)
    batch = torch.rand(5, 1, 4, 6)
    np.testing.assert_array_equal(np.stack(codec.split(batch)), batch[:, 0].numpy())


@pytest.mark.parametrize("name", ["depth", "segmentation"])
def test_a_map_in_equal_colours_is_one(name):
    """As ``cv2.imread`` returns grey files."""
    codec = BUILT[name]
    one = np.random.default_rng(0).integers(0, 5, (5, 7), dtype=np.uint8)
    opacity = np.full((5, 7, 1), 255, np.uint8)
    colours = one[..., None].repeat(3, -1)
    layouts = [colours, np.concatenate([colours, opacity], -1), colours[None], torch.from_numpy(colours)]
    for given in (*layouts, np.moveaxis(colours, -1, 0)[None], [colours]):
        singles = codec.split(given)
        assert len(singles) == 1
        np.testing.assert_array_equal(singles[0], one)
    batch = np.stack([one, one + 1, one + 2])
    np.testing.assert_array_equal(np.stack(codec.split(batch)), batch)  # three maps that differ
    np.testing.assert_array_equal(np.stack(codec.split(batch[:2])), batch[:2])
    several = np.stack([colours, colours + 1])
    np.testing.assert_array_equal(np.stack(codec.split(several)), np.stack([one, one + 1]))
    with pytest.raises(UserError, match=r"shape \(5, 7, 3\), colours: give one channel"):
        codec.split(np.moveaxis(batch, 0, -1))
    with pytest.raises(UserError, match=r"shape \(3, 5, 7\), equal along the first axis: give one .* list of maps"):
        codec.split(np.moveaxis(colours, -1, 0))
    unknown = np.where(colours == 0, np.nan, colours)
    assert len(codec.split(unknown)) == 1


def test_what_is_masked_is_invalid_or_refused():
    mask = np.zeros((4, 6), bool)
    mask[0] = True
    rng = np.random.default_rng(0)
    for values in (rng.uniform(1, 9, (4, 6)), rng.uniform(0, 1, (4, 6)), rng.integers(0, 256, (4, 6), dtype=np.uint8)):
        given = np.ma.array(values, mask=mask)
        (single,) = BUILT["depth"].split(given)
        reading = BUILT["depth"].read(single)
        assert reading.relative == BUILT["depth"].read(values).relative
        assert np.array_equal(np.isnan(reading.values), mask)
        expected = np.where(mask, np.nan, values)
        np.testing.assert_allclose(
            BUILT["depth"].encode_reading(reading),
            BUILT["depth"].encode(expected, relative=reading.relative),
            atol=1e-6,
        )
    normals = np.zeros((4, 6, 3))
    normals[..., 2] = 1
    one_component = np.zeros((4, 6, 3), bool)
    one_component[0, :, 1] = True
    encoded = BUILT["normal"].encode(BUILT["normal"].read(np.ma.array(normals, mask=one_component)).values)
    assert torch.equal(encoded.abs().sum(0), torch.from_numpy(~mask).float())
    assert torch.equal(BUILT["normal"].encode(np.ma.array(normals, mask=one_component)), encoded)
    labels = np.ma.array(np.zeros((4, 6), int), mask=mask)
    with pytest.raises(UserError, match="a segmentation map has masked pixels"):
        BUILT["segmentation"].read(labels)
    labels.mask = False
    assert not BUILT["segmentation"].read(labels).values.any()


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_tensors_of_any_type_or_a_reason():
    codec = BUILT["depth"]
    metres = torch.rand(4, 6) + 1
    torch.testing.assert_close(codec.encode(metres.bfloat16()), codec.encode(metres), atol=0.05, rtol=0)
    quantized = torch.quantize_per_tensor(metres, 0.1, 0, torch.quint8)
    for given, reason in [
        (metres.to_sparse(), r"sparse tensor: give tensor.to_dense\(\)"),
        (quantized, r"quantized tensor: give tensor.dequantize\(\)"),
        (metres.to("meta"), "tensor on the meta device"),
        (metres * 1j, "tensor of complex numbers"),
    ]:
        for take in (codec.encode, codec.read, codec.split):
            with pytest.raises(UserError, match=reason):
                take(given)


def test_two_codecs_cannot_have_one_name():
    with pytest.raises(TypeError, match="two codecs are called 'depth'"):

        class Other(Codec, name="depth"):
            pass

    assert CODECS["depth"].__module__ == "mmdit.modalities.depth"
