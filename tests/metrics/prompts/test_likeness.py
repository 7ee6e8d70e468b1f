import numpy as np
import pytest

from mmdit.metrics.prompts.likeness import CopyTest, thumbnail, thumbnail_distance


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def test_copies_are_found_and_others_are_not():
    real, other = pictures(50), pictures(50, seed=1)
    pairs = list(zip(real, other, strict=True))
    test = CopyTest(pairs)
    distances = [thumbnail_distance(*pair) for pair in pairs]
    assert test.threshold == pytest.approx(np.quantile(distances, 0.01, method="lower"))
    assert np.mean([test.is_copy(*pair) for pair in pairs]) == 0.0
    assert test.is_copy(real[3], real[3])
    noisy = np.clip(real[3].astype(int) + np.random.default_rng(1).integers(-3, 4, real[3].shape), 0, 255)
    assert test.is_copy(noisy.astype(np.uint8), real[3])


def test_nothing_is_called_a_copy_without_pictures_to_compare():
    (one,) = pictures(1)
    assert not CopyTest([]).is_copy(one, one)


def test_thumbnails_average_blocks():
    (one,) = pictures(1)
    wanted = one.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(thumbnail(one), wanted, atol=1 / 255)
