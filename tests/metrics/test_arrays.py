import math

import numpy as np
import pytest
import torch

from mmdit.metrics.arrays import RunningMean, check_same_shape, map_batch, mask_batch


def test_one_map_becomes_a_batch_of_one():
    assert map_batch(np.zeros((4, 5)), "depth").shape == (1, 4, 5)
    assert map_batch(torch.zeros(2, 4, 5, 3), "normals", channels=3).shape == (2, 4, 5, 3)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3, 4), (0, 4), (2, 0, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"depth has shape .*give \(height, width\)"):
        map_batch(np.zeros(shape), "depth")


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(height, width, 3\)"):
        map_batch(np.zeros((4, 5, 4)), "normals", channels=3)


def test_different_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"\(1, 4, 5\).*\(2, 4, 5\)"):
        check_same_shape(np.zeros((1, 4, 5)), np.zeros((2, 4, 5)), "depth")
    with pytest.raises(ValueError, match="object mask has shape"):
        mask_batch(np.ones((4, 4)), (1, 4, 5), "object mask")


def test_running_mean_equals_the_mean_of_all():
    mean = RunningMean()
    assert math.isnan(mean.compute())
    mean.update([1.0, 2.0])
    mean.update(6.0)
    assert mean.compute() == 3.0  # (1 + 2 + 6) / 3
    mean.update(np.nan)
    mean.update(1.0)
    assert math.isnan(mean.compute())
