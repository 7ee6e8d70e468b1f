import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mmdit.metrics.frechet import FeatureStatistics, feature_distance, frechet_distance


def random_covariance(size, rank, seed):
    factor = np.random.default_rng(seed).normal(size=(size, rank))
    return factor @ factor.T / rank


def statistics(features):
    result = FeatureStatistics()
    result.update(features)
    return result


def test_one_dimension_by_hand():
    # (m1 - m2)^2 + (s1 - s2)^2 with standard deviations 2 and 3: 25 + 1.
    assert frechet_distance([1.0], [[4.0]], [6.0], [[9.0]]) == pytest.approx(26)


def test_diagonal_covariances_by_hand():
    # |(3, 4)|^2 = 25; (1 - 2)^2 + (3 - 0)^2 = 10.
    assert frechet_distance([0, 0], np.diag([1.0, 9.0]), [3, 4], np.diag([4.0, 0.0])) == pytest.approx(35)


def test_covariances_that_do_not_commute_against_scipy():
    s1, s2 = random_covariance(6, 12, 0), random_covariance(6, 12, 1)
    expected = np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(np.zeros(6), s1, np.zeros(6), s2) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(np.zeros(6), s2, np.zeros(6), s1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_equal_gaussians_of_any_rank_have_distance_zero(rank):
    covariance = random_covariance(40, rank, 2)
    assert frechet_distance(np.ones(40), covariance, np.ones(40), covariance) == pytest.approx(0, abs=1e-8)


def test_rank_deficient_in_orthogonal_directions():
    # No shared direction: the traces add up, 4 + 9.
    assert frechet_distance(np.zeros(3), np.diag([4.0, 0, 0]), np.zeros(3), np.diag([0, 9.0, 0])) == pytest.approx(13)


def test_a_rotation_of_both_changes_nothing():
    s1, s2 = random_covariance(5, 2, 0), random_covariance(5, 9, 1)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))
    m1, m2 = np.arange(5.0), np.ones(5)
    turned = frechet_distance(turn @ m1, turn @ s1 @ turn.T, turn @ m2, turn @ s2 @ turn.T)
    assert turned == pytest.approx(frechet_distance(m1, s1, m2, s2))


def test_streaming_statistics_equal_numpy():
    features = np.random.default_rng(0).normal(size=(50, 7)) * 3 + 1e6
    streamed = FeatureStatistics()
    for part in (features[:1], features[1:20], features[20:20], features[20:]):
        streamed.update(torch.from_numpy(part))
    np.testing.assert_allclose(streamed.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(features.T), rtol=1e-6)
    assert streamed.count == 50


def test_distance_of_samples_of_two_gaussians():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(20_000, 2)), rng.normal(size=(20_000, 2)) * 2 + 3
    # (3^2 + (2 - 1)^2) in each of two dimensions.
    assert feature_distance(statistics(first), statistics(second)) == pytest.approx(20, rel=0.02)


def test_too_few_samples_have_no_distance():
    assert math.isnan(feature_distance(statistics(np.ones((1, 3))), statistics(np.ones((5, 3)))))
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        _ = statistics(np.ones((1, 3))).covariance


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        statistics(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match=r"\(samples, width\)"):
        statistics(np.ones(3))
    with pytest.raises(ValueError, match=r"\(samples, 3\)"):
        statistics(np.ones((2, 3))).update(np.ones((2, 4)))
    with pytest.raises(ValueError, match="one width D"):
        frechet_distance([0.0], [[1.0]], [0.0, 1.0], np.eye(2))
