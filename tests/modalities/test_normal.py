"""Surface normals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmdit.errors import UserError
from mmdit.modalities.normal import NormalCodec
from mmdit.modalities.reading import Reading


def _unit_vectors(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    vectors = rng.normal(size=(height, width, 3))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def test_normal_round_trip(rng):
    raw = _unit_vectors(rng, 6, 5)
    codec = NormalCodec()
    encoded = codec.encode(raw)
    torch.testing.assert_close(encoded, torch.from_numpy(raw).permute(2, 0, 1))
    np.testing.assert_allclose(codec.decode(encoded[None])[0], raw, atol=1e-6)


def test_normals_are_normalised_on_both_sides(rng):
    raw = _unit_vectors(rng, 6, 5)
    codec = NormalCodec()
    torch.testing.assert_close(codec.encode(0.9 * raw), codec.encode(raw))
    np.testing.assert_allclose(codec.decode(0.3 * codec.encode(raw)[None])[0], raw, atol=1e-6)


def test_given_vectors_that_are_no_unit_vectors(rng):
    codec = NormalCodec()
    facing = _unit_vectors(rng, 32, 32)
    facing[..., 2] = np.abs(facing[..., 2])
    smooth = np.asarray(
        torch.nn.functional.avg_pool2d(torch.from_numpy(facing[:2, :2].repeat(16, 0).repeat(16, 1)).permute(2, 0, 1), 3)
    )
    absent = facing.copy()
    absent[:16] = 0
    for fine in (facing, 0.9 * facing, smooth.transpose(1, 2, 0), absent, 0 * facing, facing.round() * 0 + [0, 0, 1]):
        assert codec.misread(fine) == []
    (reason,) = codec.check_given(Reading((facing + 1) / 2))
    assert "looks like (n + 1) / 2: give 2 n - 1" in reason
    (reason,) = codec.check_given(Reading(0.5 * facing))
    assert "another length than 1 in 100% of its pixels" in reason
    assert torch.equal(codec.encode(0.5 * facing), codec.encode(facing))  # data to train on are as they were


def test_missing_normals_stay_zero_and_decode_to_the_viewer():
    codec = NormalCodec()
    encoded = codec.encode(np.zeros((2, 2, 3)))
    assert torch.equal(encoded, torch.zeros(3, 2, 2))
    assert codec.decode(encoded[None])[0, 0, 0].tolist() == [0, 0, 1]


def test_flipping_normals_mirrors_the_surface():
    # A plane that faces right (+x) in the left column; mirrored, it faces left (-x) in the right column.
    raw = np.zeros((1, 2, 3), np.float32)
    raw[0, 0] = [0.6, 0, 0.8]
    raw[0, 1] = [0, 1, 0]
    codec = NormalCodec()
    flipped = codec.decode(codec.flip(codec.encode(raw))[None])[0]
    np.testing.assert_allclose(flipped, [[[0, 1, 0], [-0.6, 0, 0.8]]], atol=1e-6)


@pytest.mark.parametrize(
    "raw", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), np.nan), np.full((4, 4, 3), 200.0)]
)
def test_normal_refuses_wrong_input(raw):
    with pytest.raises(UserError, match="normal map"):
        NormalCodec().encode(raw)


def test_normals_are_near_unit_after_8_bits(tmp_path, rng, load, save):
    normals = rng.normal(size=(6, 6, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    stored = np.round((normals + 1) / 2 * 255).astype(np.uint8)
    assert np.abs(load(save(tmp_path / "n.png", stored), "normal") - normals).max() <= 1 / 255 + 1e-6


def test_grey_is_no_normal_map(tmp_path, load, save):
    with pytest.raises(UserError, match="three 8-bit channels"):
        load(save(tmp_path / "a.png", np.zeros((2, 2), np.uint8)), "normal")


def test_normals_as_a_picture():
    vectors = np.array([[[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]])
    assert NormalCodec().picture(vectors).tolist() == [[[128, 128, 255], [0, 128, 128]]]
