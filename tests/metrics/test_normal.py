import math

import numpy as np
import pytest

from mmdit.metrics.normal import AngleHistogram, NormalMetrics, angle_degrees


def rotation(axis, degrees):
    """Rodrigues' formula."""
    k = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def random_normals(shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(*shape, 3))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def measure(prediction, target, objects=None):
    metrics = NormalMetrics()
    metrics.update(prediction, target, objects)
    return metrics.compute()


@pytest.mark.parametrize("degrees", [0.0, 1e-5, 0.5, 60.0, 90.0, 179.999, 180.0])
def test_angle_of_two_vectors_in_a_plane(degrees):
    turned = np.array([math.sin(math.radians(degrees)), 0, math.cos(math.radians(degrees))])
    assert angle_degrees(np.array([0, 0, 2.0]), 3 * turned) == pytest.approx(degrees, abs=1e-9)


@pytest.mark.parametrize("degrees", [5.0, 30.0])
def test_rotating_about_an_axis_across_every_vector_gives_that_angle(degrees):
    # Vectors in the x-z plane, turned about y.
    angles = np.linspace(0, 2 * np.pi, 20).reshape(4, 5)
    target = np.stack([np.sin(angles), np.zeros_like(angles), np.cos(angles)], axis=-1)
    result = measure(target @ rotation([0, 1, 0], degrees).T, target)
    assert result["mean_angle"] == pytest.approx(degrees)
    assert result["median_angle"] == pytest.approx(degrees, abs=0.01)
    assert result["within_11_25"] == (degrees < 11.25)


def test_rotating_both_by_the_same_rotation_changes_nothing():
    prediction, target, turn = random_normals((4, 5)), random_normals((4, 5), 1), rotation([1, 2, 3], 77)
    both = measure(prediction @ turn.T, target @ turn.T)
    assert both["mean_angle"] == pytest.approx(measure(prediction, target)["mean_angle"])


def test_by_hand_with_objects():
    # Against (0, 0, 1): 0, 90, 180 and 45 degrees. Mean 315 / 4; objects are the first and last: 45 / 2.
    prediction = np.array([[[0, 0, 1], [1, 0, 0], [0, 0, -1], [0, 1, 1]]], dtype=float)
    target = np.broadcast_to([0.0, 0.0, 1.0], prediction.shape)
    result = measure(prediction, target, np.array([[True, False, False, True]]))
    assert result["mean_angle"] == pytest.approx(78.75)
    assert result["mean_angle_objects"] == pytest.approx(22.5)
    assert result["within_11_25"] == 0.25


def test_median_of_three():
    prediction = np.array([[[math.sin(math.radians(a)), 0, math.cos(math.radians(a))] for a in (1, 7, 100)]])
    result = measure(prediction, np.broadcast_to([0.0, 0.0, 1.0], prediction.shape))
    assert result["median_angle"] == pytest.approx(7, abs=0.01)


def test_length_does_not_count():
    prediction, target = random_normals((4, 5)), random_normals((4, 5), 1)
    expected = measure(prediction, target)["mean_angle"]
    assert measure(0.01 * prediction, 7 * target)["mean_angle"] == pytest.approx(expected)


def test_invalid_pixels_are_left_out_and_counted():
    prediction = np.array([[[0, 0, 1], [1, 0, 0], [np.nan, 0, 0]]], dtype=float)
    target = np.array([[[0, 0, 1], [0, 0, 0], [np.nan, 0, 1]]])
    result = measure(prediction, target, np.array([[True, True, True]]))
    assert result["mean_angle"] == 0
    assert result["mean_angle_objects"] == 0
    assert result["invalid_pixels"] == 2


@pytest.mark.parametrize("bad", [[0, 0, 0], [np.nan, 0, 1]])
def test_a_prediction_without_direction_is_never_dropped(bad):
    result = measure(np.array([[[0, 0, 1], bad]], dtype=float), np.array([[[0, 0, 1], [0, 0, 1.0]]]))
    assert math.isnan(result["mean_angle"])
    assert math.isnan(result["within_11_25"])
    assert math.isnan(result["median_angle"])


def test_nothing_measured_is_nan():
    result = measure(np.ones((2, 2, 3)), np.zeros((2, 2, 3)))
    assert math.isnan(result["mean_angle"])
    assert math.isnan(result["mean_angle_objects"])


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="prediction has shape"):
        measure(np.ones((2, 3, 3)), np.ones((3, 2, 3)))
    with pytest.raises(ValueError, match=r"\(height, width, 3\)"):
        measure(np.ones((3, 2, 2)), np.ones((3, 2, 2)))
    with pytest.raises(ValueError, match="object mask"):
        measure(np.ones((2, 2, 3)), np.ones((2, 2, 3)), np.ones((2, 3)))


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_the_middle_of_a_histogram(count):
    angles = np.random.default_rng(count).uniform(0, 180, count)
    histogram = AngleHistogram(1000)
    for part in np.array_split(angles, 3):
        histogram.add(np.append(part, np.nan))
    ordered = np.sort(angles)
    expected = ordered[(count - 1) // 2], ordered[count // 2]
    np.testing.assert_allclose(histogram.middle(), expected, atol=0.001)
    assert histogram.count == count
