from __future__ import annotations

import itertools
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.flow.schedulers import SCHEDULERS, EulerMaruyamaScheduler, make_scheduler, set_timesteps, shift_of

ODE = [name for name in SCHEDULERS if name != "euler_maruyama"]
MEAN, STD = 0.7, 0.5  # of Gaussian data, whose velocity field and flow are known


def integrate(name: str, steps: int, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Integrate the exact velocity of data N(MEAN, STD²) from noise x."""
    scheduler = make_scheduler(name)
    set_timesteps(scheduler, steps)
    start = float(scheduler.sigmas[0])  # a hair below 1 for the multistep solvers, which divide by 1 - t
    x = (1 - start) * MEAN + ((1 - start) ** 2 * STD**2 + start**2) ** 0.5 * x
    for i, timestep in enumerate(scheduler.timesteps):
        t = float(scheduler.sigmas[i])
        variance = (1 - t) ** 2 * STD**2 + t**2  # of x_t
        slope = (t - (1 - t) * STD**2) / variance
        velocity = -MEAN + slope * (x - (1 - t) * MEAN)
        extra = {"generator": generator} if name == "euler_maruyama" else {}
        x = scheduler.step(velocity, timestep, x, return_dict=False, **extra)[0]
    return x


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_times_run_from_noise_to_data(name: str, steps: int) -> None:
    scheduler = make_scheduler(name)
    set_timesteps(scheduler, steps)
    sigmas = scheduler.sigmas
    assert sigmas[0] == pytest.approx(1, abs=1.1e-3)
    assert sigmas[-1] == 0
    assert len(sigmas) == len(scheduler.timesteps) + 1
    assert (sigmas.diff() <= 0).all()
    if name != "euler_maruyama":  # evenly spaced, so none of n steps is wasted
        torch.testing.assert_close(
            sigmas.double().unique(), torch.linspace(0, 1, steps + 1, dtype=torch.float64), atol=2e-3, rtol=0
        )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_times_are_shifted(name: str) -> None:
    """Stable Diffusion 3, eq. 23, with sqrt(m / n) = 3, whatever each calls it."""
    plain, moved = make_scheduler(name), make_scheduler(name, shift=3)
    assert (shift_of(plain), shift_of(moved)) == (1, 3)
    for scheduler in (plain, moved):
        set_timesteps(scheduler, 8)
    t = plain.sigmas.double()
    torch.testing.assert_close(moved.sigmas.double(), 3 * t / (1 + 2 * t), atol=2e-3, rtol=0)
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(UserError, match=r"shift of the scheduler is .*: give a number above 0"):
            make_scheduler(name, shift=wrong)


@pytest.mark.parametrize("name", ODE)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_straight_flow_is_integrated_exactly(name: str, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, clean = torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    scheduler = make_scheduler(name)
    set_timesteps(scheduler, steps)
    x = noise
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = (x - clean) / float(scheduler.sigmas[i])  # every path through x ends at clean
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    torch.testing.assert_close(x, clean, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "order", "steps"), [("euler", 1, 40), ("heun", 2, 20), ("unipc", 2, 20), ("dpmsolver++", 1, 20)]
)
def test_a_known_flow_is_integrated_with_the_schemes_order(name: str, order: int, steps: int) -> None:
    """Data N(m, s²): the exact flow takes noise z to m + s z.

    DPM-Solver++ is of second order in steps of log-SNR, which are far from even near both ends.
    """
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    errors = [(integrate(name, n, z) - (MEAN + STD * z)).abs().max() for n in (steps, 2 * steps)]
    assert errors[1] < 0.03
    assert errors[0] / errors[1] > 0.8 * 2**order


def test_repeated_use_starts_afresh() -> None:
    for name in SCHEDULERS:
        scheduler = make_scheduler(name)
        results = []
        for _ in range(2):
            set_timesteps(scheduler, 4)
            x = torch.linspace(-1, 1, 5)[None]
            for timestep in scheduler.timesteps:
                extra = {"generator": torch.Generator().manual_seed(0)} if name == "euler_maruyama" else {}
                x = scheduler.step(x.sin(), timestep, x, return_dict=False, **extra)[0]
            results.append(x)
        assert torch.equal(*results), name


def test_euler_maruyama_equals_an_independent_float64_implementation() -> None:
    """Reverse SDE dx = (v - w score / 2) dt + sqrt(w) dW with w = 2 t; times linspace(1, 0.04, n), then 0 (MMGen)."""
    steps = 25

    def field(state: np.ndarray, t: float) -> np.ndarray:
        return np.sin(3 * state) + t

    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    times = np.append(np.linspace(1.0, 0.04, steps), 0.0)
    expected = start.numpy()
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        v, dt = field(expected, t), t - t_next
        score = -(expected + (1 - t) * v) / t  # E[noise | x_t] = x_t + (1 - t) v
        expected = expected - (v - t * score) * dt
        if i < steps - 1:  # the last step is the mean
            draw = torch.randn(2, 3, generator=generator, dtype=torch.float64).numpy()
            expected = expected + np.sqrt(2 * t * dt) * draw

    scheduler, x = EulerMaruyamaScheduler(), start
    set_timesteps(scheduler, steps)
    generator = torch.Generator().manual_seed(0)
    for t, timestep in zip(times, scheduler.timesteps, strict=False):
        velocity = torch.from_numpy(field(x.numpy(), t))
        x = scheduler.step(velocity, timestep, x, generator=generator).prev_sample
    torch.testing.assert_close(x, torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_euler_maruyama_samples_the_data_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20000, generator=generator)
    x = integrate("euler_maruyama", 100, z, generator)
    assert abs(x.mean() - MEAN) < 0.02
    assert abs(x.std() - STD) < 0.02
    assert abs(torch.corrcoef(torch.stack([z, x]))[0, 1]) < 0.5  # an SDE forgets its start; the ODE is all but linear


def test_euler_maruyama_one_generator_per_sample() -> None:
    """A sample does not depend on what it is batched with."""

    def run(x: Tensor, seeds: list[int]) -> Tensor:
        scheduler = EulerMaruyamaScheduler()
        set_timesteps(scheduler, 5)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for timestep in scheduler.timesteps:
            x = scheduler.step(x.cos(), timestep, x, generator=generators, return_dict=False)[0]
        return x

    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(run(start, [0, 1, 2])[1:2], run(start[1:2], [1]))


def test_euler_maruyama_is_a_diffusers_scheduler(tmp_path: Path) -> None:
    EulerMaruyamaScheduler(last_time=0.1).save_pretrained(tmp_path)
    scheduler = EulerMaruyamaScheduler.from_pretrained(tmp_path)
    assert scheduler.config.last_time == 0.1
    x = torch.ones(2, 1, 1)
    torch.testing.assert_close(
        scheduler.scale_noise(x, torch.tensor([0.0, 250.0]), 0 * x).flatten(), torch.tensor([1, 0.75])
    )
    assert scheduler.scale_model_input(x) is x
    assert len(scheduler) == 1000


def test_bad_input() -> None:
    with pytest.raises(UserError, match=r"'eulr'.*did you mean 'euler'"):
        make_scheduler("eulr")
    for name in SCHEDULERS:
        with pytest.raises(UserError, match="num_inference_steps is 0"):
            set_timesteps(make_scheduler(name), 0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_scheduler_of_another_process_is_refused(name: str) -> None:
    """As users swap them in diffusers: the config of the old one has nothing that would tell the new one of the flow."""
    scheduler = getattr(diffusers, name).from_config(make_scheduler("euler").config)
    with pytest.raises(UserError, match=f"{name} is not set up for flow matching: .*euler, heun"):
        set_timesteps(scheduler, 4)
