import math

import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.metrics.depth import DepthMetrics, align_depth, fit_scale_and_shift


def measure(prediction, target, space="depth", **kwargs):
    metrics = DepthMetrics(space)
    metrics.update(np.asarray(prediction, dtype=float), np.asarray(target, dtype=float), **kwargs)
    return metrics.compute()


def test_scale_and_shift_by_hand():
    # x = 0, 1, 2 and y = 1, 2, 4: mean x 1, mean y 7/3; sum (x - 1)(y - 7/3) = 4/3 + 0 + 5/3 = 3; sum (x - 1)^2 = 2;
    # scale 3/2, shift 7/3 - 3/2 = 5/6.
    scale, shift = fit_scale_and_shift(np.array([0.0, 1, 2]), np.array([1.0, 2, 4]))
    assert scale == pytest.approx(1.5)
    assert shift == pytest.approx(5 / 6)


def test_errors_by_hand_in_depth_space():
    # The fit above gives 5/6, 14/6, 23/6 for the true 1, 2, 4: relative errors 1/6, 1/6, 1/24; mean 9/72 = 1/8.
    # Ratios 6/5, 7/6, 24/23 = 1.2, 1.1667, 1.0435: all below 1.25, one below 1.05.
    # Squared errors 1/36, 1/9, 1/36: rmse sqrt((1 + 4 + 1) / 36 / 3) = sqrt(1/18).
    result = measure([[0, 1, 2]], [[1, 2, 4]])
    assert result["abs_rel"] == pytest.approx(1 / 8)
    assert result["delta1"] == 1
    assert result["delta1_05"] == pytest.approx(1 / 3)
    assert result["rmse"] == pytest.approx(math.sqrt(1 / 18))
    assert (result["num_images"], result["num_skipped"], result["invalid_pixels"]) == (1, 0, 0)


def test_errors_by_hand_in_disparity_space():
    # True depth 1, 1/2, 1/4 is disparity 1, 2, 4; fitted 5/6, 14/6, 23/6; inverted 6/5, 3/7, 6/23.
    # Relative errors |6/5 - 1| = 1/5, |6/7 - 1| = 1/7, |24/23 - 1| = 1/23.
    result = measure([[0, 1, 2]], [[1, 0.5, 0.25]], "disparity")
    assert result["abs_rel"] == pytest.approx((1 / 5 + 1 / 7 + 1 / 23) / 3)


@pytest.mark.parametrize("space", ["depth", "disparity"])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (3.0, -2.0), (0.01, 5.0), (-2.0, 1.0)])
def test_any_affine_map_of_the_truth_is_perfect(space, scale, shift):
    target = np.random.default_rng(0).uniform(1, 6, (2, 8, 8))
    exact = target if space == "depth" else 1 / target
    result = measure(scale * exact + shift, target, space)
    assert result["abs_rel"] == pytest.approx(0, abs=1e-9)
    assert result["delta1_05"] == 1


@pytest.mark.parametrize("space", ["depth", "disparity"])
def test_errors_do_not_change_under_an_affine_map_of_the_prediction(space):
    rng = np.random.default_rng(1)
    target, prediction = rng.uniform(1, 6, (3, 8, 8)), rng.uniform(0, 1, (3, 8, 8))
    expected = pytest.approx(measure(prediction, target, space), nan_ok=True)
    assert measure(7 * prediction - 3, target, space) == expected


def test_the_space_matters():
    target = np.linspace(1, 6, 64).reshape(8, 8)
    assert measure(1 / target, target, "disparity")["abs_rel"] < 1e-9
    assert measure(1 / target, target, "depth")["abs_rel"] > 0.05


def test_a_constant_prediction_becomes_the_mean_of_its_space():
    # Depth: mean of 1 and 3 is 2, errors 1/1 and 1/3. Disparity: mean of 1 and 1/3 is 2/3, depth 3/2, errors 1/2 twice.
    assert measure([[5, 5]], [[1, 3]])["abs_rel"] == pytest.approx(2 / 3)
    assert measure([[5, 5]], [[1, 3]], "disparity")["abs_rel"] == pytest.approx(1 / 2)


def test_invalid_pixels_are_left_out_and_counted():
    target = np.array([[1, 2, 4, 0, -1, np.nan, np.inf]])
    prediction = np.array([[0, 1, 2, 99, 99, np.nan, 99]])
    result = measure(prediction, target)
    assert result["abs_rel"] == pytest.approx(1 / 8)
    assert result["invalid_pixels"] == 4


def test_an_image_with_less_than_two_valid_pixels_is_skipped_and_counted():
    targets = np.array([[[1, 2, 4]], [[3, 0, 0]], [[0, 0, 0]]])
    result = measure(np.array([[[0, 1, 2]]] * 3), targets)
    assert result["abs_rel"] == pytest.approx(1 / 8)
    assert (result["num_images"], result["num_skipped"], result["invalid_pixels"]) == (1, 2, 5)
    assert math.isnan(measure([[1, 1]], [[0, 0]])["abs_rel"])


def test_nan_in_a_prediction_is_never_dropped():
    assert math.isnan(measure([[0, np.nan, 2]], [[1, 2, 4]])["abs_rel"])
    assert math.isnan(measure([[0, np.inf, 2]], [[1, 2, 4]])["delta1"])


def test_an_aligned_disparity_below_zero_is_clamped_to_the_farthest_depth():
    # Fitted on four pixels: disparity = 0.5 + 0.5 * prediction; the fifth, not in the fit, comes to 0.5 - 4.5 < 0.
    target = np.array([[1, 1, 2, 2, np.nan]])
    prediction = np.array([[1.0, 1, 0, 0, -9]])
    aligned = align_depth(prediction, target, "disparity", (0.1, 16.0))
    np.testing.assert_allclose(aligned, [[1, 1, 2, 2, 16]])


def test_objects_and_images_are_averaged_apart():
    # First image as by hand, relative errors 1/6, 1/6, 1/24, object = last pixel; the second is perfect, no objects.
    objects = np.array([[[False, False, True]], [[False, False, False]]])
    result = measure([[[0, 1, 2]], [[1, 2, 4]]], [[[1, 2, 4]], [[1, 2, 4]]], objects=objects)
    assert result["abs_rel"] == pytest.approx(1 / 16)
    assert result["abs_rel_objects"] == pytest.approx(1 / 24)


def test_one_by_one_equals_a_batch():
    rng = np.random.default_rng(2)
    target, prediction = rng.uniform(1, 6, (3, 4, 5)), rng.uniform(0, 1, (3, 4, 5))
    single = DepthMetrics("disparity")
    for index in range(3):
        single.update(prediction[index], target[index])
    batch = DepthMetrics("disparity")
    batch.update(prediction, target)
    assert single.compute() == pytest.approx(batch.compute(), nan_ok=True)


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match=r"unknown depth space 'disparty'.*'disparity'"):
        DepthMetrics("disparty")
    with pytest.raises(UserError, match="depth_range"):
        DepthMetrics("depth", (2.0, 1.0))
    with pytest.raises(ValueError, match="prediction has shape"):
        measure(np.zeros((4, 4)), np.ones((4, 5)))
