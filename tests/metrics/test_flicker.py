"""Flicker of made-up predictions whose change is known, and points that are followed through analytic views."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from mmdit.metrics.flicker import Correspondence, FlickerMetrics, View
from mmdit.modalities.codec import Codec
from mmdit.modalities.normal import NormalCodec
from mmdit.modalities.segmentation import SegmentationCodec

SIZE = 32
RNG = np.random.default_rng(0)


def wall(x: float = 0.0, distance: float = 2.0, pitch: float = 0.0) -> View:
    """A camera that looks along world +y, pitched down by ``pitch`` degrees, at a wall y = distance; field of view 90°."""
    angle = math.radians(pitch)
    rotation = np.array([[1, 0, 0], [0, math.sin(angle), math.cos(angle)], [0, -math.cos(angle), math.sin(angle)]])
    centres = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    right, up = np.meshgrid(centres, -centres)
    rays = np.stack([right, up, -np.ones_like(right)], axis=-1) @ rotation  # per metre of depth, in the world
    return View(distance / rays[..., 1], np.array([x, 0.0, 0.0]), rotation, 90.0)


def test_points_move_as_the_camera_says():
    """2 m away and 90° wide, a pixel is 4 / 32 m: a step of 0.25 m to the right moves the wall by 2 pixels to the left."""
    where = Correspondence.between(wall(0.25), wall(0.0))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    np.testing.assert_allclose(where.columns, columns + 2)
    np.testing.assert_allclose(where.rows, rows)
    assert where.seen[:, : SIZE - 2].all()
    assert not where.seen[:, SIZE - 2 :].any()
    values = RNG.random((SIZE, SIZE, 3))
    np.testing.assert_allclose(where.sample(values)[:, :-2], values[:, 2:])


def test_turned_camera_sees_the_same_points():
    now, before = wall(pitch=8), wall(0.1, 1.9, pitch=3)
    where = Correspondence.between(now, before)  # the eye is nearer to another wall: nothing is there any more
    assert not where.seen.any()
    before = wall(0.1, pitch=3)
    where = Correspondence.between(now, before)
    assert where.seen.mean() > 0.8
    np.testing.assert_allclose(where.sample(_points(before))[where.seen], _points(now)[where.seen], atol=2e-3)


def _points(view: View) -> np.ndarray:
    centres = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    right, up = np.meshgrid(centres, -centres)
    local = np.stack([right, up, -np.ones_like(right)], axis=-1) * view.depth[..., None]
    return local @ view.world_to_camera + view.eye


def test_hidden_points_are_left_out():
    far, near = wall(), wall(distance=1.0)
    assert not Correspondence.between(far, near).seen.any()


def still(count: int) -> tuple[list[View], list[Correspondence]]:
    views = [wall()] * count
    return views, [Correspondence.between(views[0], views[0])] * (count - 1)


def test_flicker_of_numbers():
    truth = RNG.random((4, SIZE, SIZE))
    views, moves = still(4)
    metrics = FlickerMetrics(Codec())
    metrics.add(truth + 0.3, truth, views, moves)  # a constant error does not flicker
    assert metrics.compute()["flicker"] == pytest.approx(0, abs=1e-9)
    offsets = np.array([0, 0.02, 0, 0.02])[:, None, None]
    metrics.add(truth + offsets, truth, views, moves)
    found = metrics.compute()
    assert found["flicker"] == pytest.approx(1.0)  # the mean of 0 and 2 hundredths
    assert found["standard_error"]["flicker"] == pytest.approx(1.0)
    assert found["unit"] == "/100"


def test_change_of_points_is_0_where_they_stay():
    views = [wall(0.25 * i) for i in range(3)]
    moves = [Correspondence.between(now, before) for before, now in pairwise(views)]
    scenery = RNG.random((SIZE, SIZE + 4))
    maps = np.stack([scenery[:, 2 * i : 2 * i + SIZE] for i in range(3)])
    metrics = FlickerMetrics(Codec())
    metrics.add(maps, maps, views, moves)
    assert metrics.compute()["warped_change"] == pytest.approx(0, abs=1e-9)
    assert metrics.compute()["flicker"] == 0


def test_normals_turn_with_the_camera():
    views = [wall(pitch=0), wall(pitch=6)]
    moves = [Correspondence.between(views[1], views[0])]
    world = np.array([0, -1.0, 0])  # the wall's
    truth = np.stack([np.broadcast_to(view.world_to_camera @ world, (SIZE, SIZE, 3)) for view in views])
    metrics = FlickerMetrics(NormalCodec())
    metrics.add(truth, truth, views, moves)
    assert metrics.compute()["warped_change"] == pytest.approx(0, abs=1e-5)
    turned = truth.copy()
    angle = math.radians(5)
    turned[1] = turned[1] @ np.array(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    )
    metrics = FlickerMetrics(NormalCodec())
    metrics.add(turned, truth, views, moves)
    found = metrics.compute()
    assert found["flicker"] == pytest.approx(5, abs=0.1)
    assert found["warped_change"] == pytest.approx(5, abs=0.1)


def test_labels_that_change_with_the_truth_do_not_flicker():
    truth = np.zeros((3, SIZE, SIZE), np.int64)
    truth[1:, :, :16] = 1
    predicted = truth.copy()
    predicted[2, :8] = 2
    views, moves = still(3)
    metrics = FlickerMetrics(SegmentationCodec())
    metrics.add(predicted, truth, views, moves)
    found = metrics.compute()
    assert found["flicker"] == pytest.approx(12.5)  # a quarter of the pixels, in one change of two
    assert found["warped_change"] == pytest.approx((50 + 25) / 2)


def test_shapes_must_agree():
    views, moves = still(2)
    with pytest.raises(ValueError, match="video"):
        FlickerMetrics(Codec()).add(np.zeros((2, 4, 4)), np.zeros((2, 5, 4)), views, moves)
