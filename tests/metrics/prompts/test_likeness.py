import numpy as np

from mmdit.metrics.prompts.likeness import CopyTest, thumbnail


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def test_copies_are_found_and_others_are_not():
    real = pictures(20)
    test = CopyTest([*real, real[0]])
    assert test.is_copy(real[3], real[3])
    noisy = np.clip(real[3].astype(int) + np.random.default_rng(1).integers(-3, 4, real[3].shape), 0, 255)
    assert test.is_copy(noisy.astype(np.uint8), real[3])
    shares = [test.is_copy(one, other) for i, one in enumerate(real) for other in real[:i]]
    assert np.mean(shares) <= 0.02


def test_nothing_is_called_a_copy_without_pictures_to_compare():
    (one,) = pictures(1)
    assert not CopyTest([]).is_copy(one, one)
    assert not CopyTest([one, one]).is_copy(one, one)


def test_thumbnails_average_blocks():
    (one,) = pictures(1)
    wanted = one.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(thumbnail(one), wanted, atol=1 / 255)
