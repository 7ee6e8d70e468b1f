"""Distributions of training timesteps over [0, 1], 1 = noise; all draw with an explicit generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name


class TimestepSampler(Protocol):
    """Draws (batch_size,) float32 timesteps on the generator's device."""

    def __call__(self, batch_size: int, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Uniform:
    """t ~ U[0, 1] (SiT, MMGen)."""

    def __call__(self, batch_size: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch_size, generator=generator, device=generator.device)


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(N(mean, std²)) (Stable Diffusion 3, arXiv 2403.03206, eq. 19); mean > 0 favours noise."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise UserError(f"std of the logit-normal timesteps is {self.std}: give a number > 0")
        if not math.isfinite(self.mean):
            raise UserError(f"mean of the logit-normal timesteps is {self.mean}: give a number")

    def __call__(self, batch_size: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(batch_size, generator=generator, device=generator.device)
        return torch.sigmoid(self.mean + self.std * normal)


@dataclass(frozen=True)
class Mixed:
    """Uniform for a share of the samples, logit-normal for the rest: no timestep is starved."""

    uniform_share: float = 0.45
    mean: float = 0.5
    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.uniform_share <= 1:
            raise UserError(f"uniform_share of the mixed timesteps is {self.uniform_share}: give a share from 0 to 1")
        LogitNormal(self.mean, self.std)  # refuses bad numbers now, not in the first step

    def __call__(self, batch_size: int, generator: torch.Generator) -> Tensor:
        uniform = Uniform()(batch_size, generator)
        normal = LogitNormal(self.mean, self.std)(batch_size, generator)
        chosen = torch.rand(batch_size, generator=generator, device=generator.device) < self.uniform_share
        return torch.where(chosen, uniform, normal)


TIMESTEP_SAMPLERS: dict[str, type[Uniform] | type[LogitNormal] | type[Mixed]] = {
    "uniform": Uniform,
    "logit_normal": LogitNormal,
    "mixed": Mixed,
}


def make_timestep_sampler(name: str, **settings: float) -> TimestepSampler:
    """Build a sampler from ``TIMESTEP_SAMPLERS``. Raises UserError for an unknown name or a setting it doesn't have."""
    if name not in TIMESTEP_SAMPLERS:
        raise unknown_name("timestep distribution", name, TIMESTEP_SAMPLERS)
    try:
        return TIMESTEP_SAMPLERS[name](**settings)
    except TypeError as error:
        raise UserError(f"timestep distribution {name!r} does not take {settings}: {error}") from error
