from __future__ import annotations

import numpy as np

from mmdit.cli.common.pictures import color_depth, color_normal, color_segmentation, labelled_grid, tile
from mmdit.modalities.codecs import SegmentationCodec


def _lightness(rgb):
    return rgb.astype(float) @ [0.299, 0.587, 0.114]


def test_near_is_bright_in_both_spaces():
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    disparity, depth = color_depth(ramp, "disparity"), color_depth(ramp, "depth")
    assert (np.diff(_lightness(disparity)[0]) > -1).all()  # 8-bit rounding aside, lightness rises all the way
    assert _lightness(disparity)[0, -1] > _lightness(disparity)[0, 0] + 150
    np.testing.assert_array_equal(depth[:, ::-1], disparity)


def test_depth_colours_take_values_out_of_range():
    assert color_depth(np.array([[-1.0, 2.0, np.nan]]), "disparity").shape == (1, 3, 3)


def test_normals():
    vectors = np.array([[[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]])
    assert color_normal(vectors).tolist() == [[[128, 128, 255], [0, 128, 128]]]


def test_segmentation_colours():
    codec = SegmentationCodec([{"id": 2, "name": "a", "color": [1, 2, 3]}, {"id": 5, "name": "b", "color": [9, 8, 7]}])
    labels = np.array([[2, 5, 0, 7]])
    assert color_segmentation(labels, codec)[0].tolist() == [[1, 2, 3], [9, 8, 7], [128] * 3, [128] * 3]


def test_tile_sizes():
    assert tile(np.zeros((64, 48, 3), np.uint8)).size == (96, 128)
    assert tile(np.zeros((1000, 500, 3), np.uint8)).size == (256, 512)


def test_grid_places_pictures():
    red, blue = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    plain = np.asarray(labelled_grid([[red, blue], [blue, None]], [], ["a", "b"]))
    for color, count in (([255, 0, 0], 1), ([0, 0, 255], 2)):
        assert (plain == color).all(axis=-1).sum() == count * 128 * 128
    captioned = labelled_grid([[red]], ["row"], ["a"], [["text"]])
    assert captioned.height > 128
    assert captioned.width > 128
