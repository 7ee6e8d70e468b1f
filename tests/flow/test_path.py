from __future__ import annotations

import pytest
import torch

from mmdit.flow.path import Given, linear_path, place
from mmdit.task import Role

SHAPE = (2, 3, 4, 5, 6)


def _tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_time_runs_from_data_to_noise() -> None:
    clean, noise = _tensors()
    assert torch.equal(linear_path(clean, noise, torch.zeros(2, 3)).x_t, clean)
    assert torch.equal(linear_path(clean, noise, torch.ones(2, 3)).x_t, noise)


def test_velocity_is_the_derivative_of_the_path() -> None:
    clean, noise = (x.double() for x in _tensors())
    t, step = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1e-6
    path = linear_path(clean, noise, t)
    difference = (linear_path(clean, noise, t + step).x_t - linear_path(clean, noise, t - step).x_t) / (2 * step)
    torch.testing.assert_close(path.velocity, difference, atol=1e-8, rtol=0)
    torch.testing.assert_close(path.velocity, noise - clean)


def test_each_modality_is_at_its_own_time() -> None:
    clean, noise = _tensors()
    t = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.0, 0.75]])
    x_t = linear_path(clean, noise, t).x_t
    for b in range(2):
        for m in range(3):
            expected = clean[b, m] + float(t[b, m]) * (noise[b, m] - clean[b, m])
            torch.testing.assert_close(x_t[b, m], expected)


def test_place_puts_every_role_where_it_belongs() -> None:
    clean, noise = _tensors()
    state = torch.full(SHAPE, 7.0)
    roles = torch.tensor([[Role.GENERATE, Role.CONDITION, Role.ABSENT]]).expand(4, -1)  # two branches of a batch of two
    x_t, timesteps = place(state, Given(clean, noise, condition_time=0.25), roles, 0.6)
    assert x_t.shape == (4, *SHAPE[1:])
    torch.testing.assert_close(timesteps, torch.tensor([[0.6, 0.25, 1.0]]).expand(4, -1))
    for branch in (x_t[:2], x_t[2:]):
        assert (branch[:, 0] == 7).all()
        torch.testing.assert_close(branch[:, 1], 0.75 * clean[:, 1] + 0.25 * noise[:, 1])
        torch.testing.assert_close(branch[:, 2], noise[:, 2])


@pytest.mark.parametrize("t", [1.0, 0.6, 0.0])
def test_what_is_known_is_as_noisy_as_the_rest(t: float) -> None:
    clean, noise = _tensors()
    known = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    state = torch.full(SHAPE, 7.0)
    roles = torch.tensor([[Role.GENERATE, Role.CONDITION, Role.GENERATE]]).expand(4, -1)
    x_t, timesteps = place(state, Given(clean, noise, 0.25, known), roles, t)
    torch.testing.assert_close(timesteps, torch.tensor([[t, 0.25, t]]).expand(4, -1))
    for branch in (x_t[:2], x_t[2:]):
        for m in (0, 2):
            for b in range(2):
                here = known[b, m]
                assert (branch[b, m][:, ~here] == 7).all()
                expected = (1 - t) * clean[b, m] + t * noise[b, m]
                torch.testing.assert_close(branch[b, m][:, here], expected[:, here])
        torch.testing.assert_close(
            branch[:, 1], 0.75 * clean[:, 1] + 0.25 * noise[:, 1]
        )  # a condition is one everywhere
    if t == 0:
        assert torch.equal(x_t[0, 0][:, known[0, 0]], clean[0, 0][:, known[0, 0]])  # exactly, at the end
