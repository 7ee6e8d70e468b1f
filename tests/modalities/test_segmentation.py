"""Label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.palette import generic_palette
from mmdit.modalities.segmentation import SegmentationCodec

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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_are_ids(tmp_path, dtype, load, save):
    labels = np.array([[0, 3], [7, 200]], dtype)
    loaded = load(save(tmp_path / "s.png", labels), "segmentation")
    assert loaded.dtype == np.int64
    assert loaded.tolist() == labels.tolist()


def test_labels_of_a_palette_image_are_its_indices(tmp_path, load):
    image = Image.fromarray(np.array([[0, 2], [1, 2]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "s.png")
    assert load(tmp_path / "s.png", "segmentation").tolist() == [[0, 2], [1, 2]]


def test_segmentation_colours():
    codec = SegmentationCodec([{"id": 2, "name": "a", "color": [1, 2, 3]}, {"id": 5, "name": "b", "color": [9, 8, 7]}])
    labels = np.array([[2, 5, 0, 7]])
    assert codec.picture(labels)[0].tolist() == [[1, 2, 3], [9, 8, 7], [128] * 3, [128] * 3]


def test_a_legend_names_what_is_seen():
    labels = np.full((20, 20), 3)
    labels[:9] = 0
    labels[0, :3] = 7  # less than a hundredth
    labels[0, 3] = 99  # no class
    assert SegmentationCodec(CLASSES).legend(labels) == {"torus": (255, 0, 0), "floor": (0, 0, 0)}
