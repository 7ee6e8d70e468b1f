from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmdit.flow.path import linear_path
from mmdit.flow.prediction import PREDICTIONS
from mmdit.names import PREDICTION_TYPES


@pytest.fixture
def sample() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 3, 4, 4, generator=generator), torch.randn(2, 4, 3, 4, 4, generator=generator)
    return clean, noise, torch.tensor([[0.03, 0.1, 0.5, 1.0], [0.2, 0.4, 0.6, 0.8]])


def test_every_declared_prediction_is_known() -> None:
    assert tuple(PREDICTIONS) == PREDICTION_TYPES


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_perfect_output_gives_the_velocity(name: str, sample: tuple[Tensor, ...]) -> None:
    clean, noise, t = sample
    path, prediction = linear_path(clean, noise, t), PREDICTIONS[name]
    output = prediction.target(path, clean)
    torch.testing.assert_close(prediction.to_velocity(output, path.x_t, t), noise - clean, atol=2e-5, rtol=1e-4)


def test_velocity_of_a_clean_prediction_is_bounded_near_the_data() -> None:
    x_t, output = torch.ones(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2)
    velocity = PREDICTIONS["sample"].to_velocity(output, x_t, torch.zeros(1, 1))
    torch.testing.assert_close(velocity, torch.full_like(x_t, 1 / 0.03))


def test_loss_weights() -> None:
    t = torch.tensor([[0.0, 0.05, 0.1, 0.5, 1.0]])
    assert (PREDICTIONS["velocity"].weight(t) == 1).all()
    torch.testing.assert_close(PREDICTIONS["sample"].weight(t), torch.tensor([[10.0, 10.0, 10.0, 2.0, 1.0]]))
