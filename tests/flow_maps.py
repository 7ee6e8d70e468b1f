"""Fields whose flow maps are known, as networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.conditioning import Conditioning
from mmdit.flow.path import expand
from mmdit.flow.prediction import PREDICTIONS

PROMPT = Conditioning(torch.zeros(1, 1))


@dataclass
class Output:
    """What a network returns."""

    sample: Tensor


class GaussianMap(nn.Module):
    """The flow map of data N(m, d²), independent in each entry, times 1 + a plus b; a = b = 0 is the truth.

    x_t ~ N((1 - t) m, w(t)²) with w² = (1 - t)² d² + t², and the flow keeps (x_t - (1 - t) m) / w(t).
    """

    def __init__(
        self, mean: Tensor, std: Tensor, prediction: str = "velocity", *, a: float = 0.0, b: float = 0.0
    ) -> None:
        super().__init__()
        self.mean, self.std, self.prediction = mean, std, PREDICTIONS[prediction]  # (M,) each
        self.a, self.b = (nn.Parameter(torch.full_like(mean, value)) for value in (a, b))
        self.calls: list[dict[str, Any]] = []

    def forward(
        self, x_t: Tensor, t: Tensor, roles: Tensor, prompt: Any, timesteps_next: Tensor | None = None
    ) -> Output:
        self.calls.append({"x_t": x_t, "t": t, "s": timesteps_next, "roles": roles})
        s = t if timesteps_next is None else timesteps_next
        mean, width_t, width_s = self.mean, self.width(t), self.width(s)
        rest = x_t - expand((1 - t) * mean, x_t)
        velocity = expand((t - (1 - t) * self.std**2) / width_t**2, x_t) * rest
        ratio = torch.where(t > s, (1 - width_s / width_t) / torch.where(t > s, t - s, 1), 0)
        step = torch.where(expand(t > s, x_t), expand(ratio, x_t) * rest, velocity) - expand(mean.expand_as(t), x_t)
        u = step * expand((1 + self.a).expand_as(t), x_t) + expand(self.b.expand_as(t), x_t)
        return Output(self.prediction.from_velocity(u, x_t, t))

    def width(self, t: Tensor) -> Tensor:
        """w(t)."""
        return ((1 - t) ** 2 * self.std**2 + t**2).sqrt()


class Wave(nn.Module):
    """A smooth network without meaning, in which modalities, times and prompt all depend on each other."""

    def forward(
        self, x_t: Tensor, t: Tensor, roles: Tensor, prompt: Any, timesteps_next: Tensor | None = None
    ) -> Output:
        s = t if timesteps_next is None else timesteps_next
        phase = (t * torch.arange(1, t.shape[1] + 1) - s.square()).sum(1) + prompt.vector.sum(-1) + roles.sum(1)
        mixed = x_t.mean(1, keepdim=True) + 0.3 * x_t
        return Output(torch.sin(1.3 * mixed + expand(phase[:, None], x_t)) + 0.1 * expand(t, x_t) * x_t)
