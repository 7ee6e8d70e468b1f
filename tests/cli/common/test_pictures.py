from __future__ import annotations

import numpy as np

from mmdit.cli.common.pictures import labelled_grid, tile


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
