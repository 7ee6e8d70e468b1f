import numpy as np
import pytest
import torch

from mmdit.errors import UserError
from mmdit.modalities.codecs import (
    CODECS,
    DepthCodec,
    NormalCodec,
    RGBCodec,
    SegmentationCodec,
    build_codec,
    generic_palette,
)
from mmdit.modalities.modality import MODALITIES, Modality


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_every_default_modality_builds_its_codec():
    for modality in MODALITIES.values():
        assert isinstance(build_codec(modality), CODECS[modality.codec])


def test_unknown_codec_and_setting_are_user_errors():
    with pytest.raises(UserError, match=r"codec 'dpth'.*'depth'"):
        build_codec(Modality("depth", codec="dpth"))
    with pytest.raises(UserError, match=r"'rgb'.*space"):
        build_codec(Modality("rgb", codec="rgb", settings={"space": "depth"}))


# ---- RGB


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


# ---- depth


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


# ---- normals


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


@pytest.mark.parametrize("name", ["rgb", "depth", "normal", "segmentation"])
def test_flip_is_its_own_inverse(name):
    images = torch.randn(2, 3, 4, 5)
    codec = build_codec(MODALITIES[name])
    assert torch.equal(codec.flip(codec.flip(images)), images)
    if name != "normal":
        assert torch.equal(codec.flip(images), images.flip(-1))


@pytest.mark.parametrize(
    "raw", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), np.nan), np.full((4, 4, 3), 200.0)]
)
def test_normal_refuses_wrong_input(raw):
    with pytest.raises(UserError, match="normal map"):
        NormalCodec().encode(raw)


# ---- segmentation

CLASSES = [
    {"id": 0, "name": "floor", "color": [0, 0, 0]},
    {"id": 7, "name": "wall", "color": [255, 255, 255]},
    {"id": 3, "name": "torus", "color": [255, 0, 0]},
]


def test_labels_round_trip_with_sparse_ids(rng):
    labels = rng.choice([0, 7, 3], size=(5, 6)).astype(np.uint8)
    codec = SegmentationCodec(CLASSES)
    decoded = codec.decode(codec.encode(labels)[None])[0]
    assert decoded.dtype == np.int64
    assert np.array_equal(decoded, labels)


def test_labels_decode_to_the_nearest_colour():
    codec = SegmentationCodec(CLASSES)
    images = torch.tensor([[0.8, -0.6, -0.9], [0.1, 0.2, 0.3], [-0.2, -0.1, -0.3]]).T.view(1, 3, 1, 3)
    assert codec.decode(images).tolist() == [[[3, 7, 0]]]


def test_logits_are_minus_squared_distances():
    codec = SegmentationCodec(CLASSES)
    images = torch.randn(2, 3, 4, 4)
    expected = -(images[:, None] - codec.palette[None, :, :, None, None]).square().sum(dim=2)
    torch.testing.assert_close(codec.logits(images), expected, atol=1e-5, rtol=1e-5)


def test_generic_palette_is_far_apart_and_survives_noise(rng):
    palette = generic_palette().astype(int)
    distance = np.abs(palette[:, None] - palette[None]).max(axis=-1) + 1000 * np.eye(64, dtype=int)
    assert distance.min() == 85
    labels = rng.integers(0, 64, (16, 16))
    codec = SegmentationCodec()
    noisy = codec.encode(labels) + torch.empty(3, 16, 16).uniform_(-0.3, 0.3)  # half the spacing is 85 / 255 = 0.33
    assert np.array_equal(codec.decode(noisy[None])[0], labels)


@pytest.mark.parametrize("label", [1, 8, 255, -1])
def test_unknown_labels_are_named(label):
    with pytest.raises(UserError, match=rf"unknown label {label}:"):
        SegmentationCodec(CLASSES).encode(np.array([[0, label]]))


@pytest.mark.parametrize("raw", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8)])
def test_segmentation_refuses_wrong_input(raw):
    with pytest.raises(UserError, match="segmentation map"):
        SegmentationCodec().encode(raw)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "empty"),
        ([{"id": 0, "name": "a"}], "color"),
        ([{"id": 0, "name": "a", "color": [0, 0, 256]}], "color"),
        ([CLASSES[0], {**CLASSES[1], "id": 0}], "share"),
        ([CLASSES[0], {**CLASSES[1], "color": [0, 0, 0]}], "share"),
        ([{**CLASSES[0], "id": -1}], "negative"),
    ],
)
def test_segmentation_refuses_wrong_classes(classes, message):
    with pytest.raises(UserError, match=message):
        SegmentationCodec(classes)


def test_decode_refuses_unbatched_images():
    with pytest.raises(UserError, match="batch"):
        RGBCodec().decode(torch.zeros(3, 4, 4))
