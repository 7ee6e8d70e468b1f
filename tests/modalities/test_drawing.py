"""Drawings in a codec's own colours are read as what the colours stand for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmdit.modalities import MODALITIES, Codec, build_codec

CLASSES = [
    {"id": 0, "name": "floor", "color": [0, 0, 0]},
    {"id": 4, "name": "wall", "color": [128, 128, 100]},
    {"id": 9, "name": "torus", "color": [255, 255, 255]},
]


def codec(name: str, **settings: object) -> Codec:
    return build_codec(MODALITIES[name].replace(**settings))


@pytest.mark.parametrize("name", MODALITIES)
def test_a_sheet_of_each_colour_can_be_given(name):
    made = codec(name)
    colors = made.drawing_colors()
    assert len(set(colors.values())) == len(colors)
    for color in colors.values():
        reading = made.from_drawing(np.full((4, 6, 3), color, dtype=np.uint8))
        assert reading.values.shape[:2] == (4, 6)
        assert made.check_given(reading) == []


@pytest.mark.parametrize("space", ["depth", "disparity"])
def test_near_is_drawn_white(space):
    made = codec("depth", space=space, quantiles=[0, 1])
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[:, 1], pixels[:, 2] = 127, 255
    encoded = made.encode_reading(made.from_drawing(pixels))[0]
    expected = np.array([1, 1 - 2 * 127 / 255, -1]) * (1 if space == "depth" else -1)
    np.testing.assert_allclose(encoded[0].numpy(), expected, atol=1e-6)


def test_normals_are_unit_vectors_towards_what_the_colour_says():
    made = codec("normal")
    colors = made.drawing_colors()
    for name, expected in {"up": [0, 1, 0], "right": [0.5**0.5, 0, 0.5**0.5], "towards the viewer": [0, 0, 1]}.items():
        vector = made.from_drawing(np.array(colors[name], dtype=np.uint8)[None, None]).values[0, 0]
        np.testing.assert_allclose(vector, expected, atol=0.01)
    grey = made.from_drawing(np.full((1, 1, 3), 127.5, dtype=np.uint8)).values[0, 0]
    assert np.linalg.norm(grey) == pytest.approx(1)


def test_smooth_edges_of_a_brush_are_no_third_class():
    """Half-way from black to white the nearest class is a third one; the edge of a white stroke is not that class."""
    made = codec("segmentation", classes=CLASSES)
    large = Image.new("RGB", (256, 256), (0, 0, 0))
    ImageDraw.Draw(large).ellipse((60, 60, 200, 200), (255, 255, 255))
    pixels = np.asarray(large.resize((64, 64), Image.Resampling.BOX))
    between = (pixels[..., 0] > 20) & (pixels[..., 0] < 235)
    assert between.sum() > 50
    labels = made.from_drawing(pixels).values
    assert set(np.unique(labels)) == {0, 9}
    assert abs((labels == 9).mean() - np.pi * 70**2 / 256**2) < 0.01


def test_colours_that_are_no_classes_are_the_nearest():
    made = codec("segmentation", classes=CLASSES)
    pixels = np.array([[[40, 30, 20], [200, 220, 210], [140, 120, 110]]], dtype=np.uint8)
    np.testing.assert_array_equal(made.from_drawing(pixels).values, [[0, 9, 4]])


def test_a_map_without_a_codec_of_its_own_is_grey():
    class Heat(Codec):
        value_range = (10.0, 30.0)

    made = Heat()
    assert list(made.drawing_colors()) == ["10", "15", "20", "25", "30"]
    for name, color in made.drawing_colors().items():
        value = made.from_drawing(np.full((1, 1, 3), color, dtype=np.uint8)).values
        np.testing.assert_allclose(value, float(name), atol=0.05)
