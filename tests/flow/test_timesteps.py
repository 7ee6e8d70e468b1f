from __future__ import annotations

import math

import pytest
import torch

from mmdit.errors import UserError
from mmdit.flow.timesteps import TIMESTEP_SAMPLERS, LogitNormal, Mixed, Uniform, make_timestep_sampler

N = 40000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("quantile", [0.1, 0.3, 0.5, 0.8])
def test_distribution_functions(quantile: float) -> None:
    logit = math.log(quantile / (1 - quantile))
    expected = {
        Uniform(): quantile,
        LogitNormal(0.5, 1.2): normal_cdf((logit - 0.5) / 1.2),
        Mixed(0.45, 0.5, 1.0): 0.45 * quantile + 0.55 * normal_cdf(logit - 0.5),
    }
    for sampler, probability in expected.items():
        share = (sampler(N, generator()) < quantile).float().mean()
        assert abs(share - probability) < 0.011, sampler  # four standard deviations


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
def test_draws_in_range_with_the_generator_only(name: str) -> None:
    sampler = make_timestep_sampler(name)
    state = torch.get_rng_state()
    first, second = sampler(100, generator(3)), sampler(100, generator(3))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == (100,)
    assert ((first >= 0) & (first <= 1)).all()


def test_bad_settings() -> None:
    with pytest.raises(UserError, match=r"'unifrom'.*did you mean 'uniform'"):
        make_timestep_sampler("unifrom")
    with pytest.raises(UserError, match="does not take"):
        make_timestep_sampler("uniform", mean=0.0)
    with pytest.raises(UserError, match=r"std .* is 0"):
        make_timestep_sampler("logit_normal", std=0.0)
    with pytest.raises(UserError, match=r"uniform_share .* is 2"):
        make_timestep_sampler("mixed", uniform_share=2.0)
