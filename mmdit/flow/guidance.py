"""Classifier-free guidance (arXiv 2207.12598) on the class and, through ABSENT, on the condition.

v = v_full + (s_y - 1) (v_full - v_without_class) + (s_c - 1) (v_full - v_without_condition), each term where it is
asked for, and only while t is inside the guidance interval (arXiv 2404.07724).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from mmdit.conditioning import Conditioning, concatenate
from mmdit.errors import UserError
from mmdit.task import Role


@dataclass(frozen=True)
class Guidance:
    """How strongly, and when, predictions are pushed towards the prompt.

    Args:
        scale: s_y, guidance on the class; 1 = none.
        condition_scale: s_c, guidance on the condition modalities; 1 = none.
        interval: (low, high), the timesteps between which guidance is on, 0 = data, 1 = noise.
    """

    scale: float = 1.0
    condition_scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        pair = tuple(self.interval) if isinstance(self.interval, Iterable) else ()
        if len(pair) != 2 or not all(isinstance(x, Real) for x in pair) or not 0 <= pair[0] <= pair[1] <= 1:
            raise UserError(f"guidance_interval is {self.interval!r}: give (low, high) with 0 <= low <= high <= 1")
        for name, value in (("guidance_scale", self.scale), ("condition_guidance_scale", self.condition_scale)):
            if not isinstance(value, Real) or not 0 <= value < math.inf:
                raise UserError(f"{name} is {value!r}: give a number >= 0 (1 = no guidance)")

    def is_active(self, t: float) -> bool:
        return self.interval[0] <= t <= self.interval[1]


def without_conditions(roles: Tensor) -> Tensor:
    """Roles (B, M) with every CONDITION made ABSENT: the null condition."""
    return torch.where(roles == Role.CONDITION, int(Role.ABSENT), roles)


# (conditioning, roles) of n B samples -> velocity (n B, M, C, H, W)
Velocity = Callable[[Conditioning, Tensor], Tensor]


def guided_velocity(
    velocity: Velocity,
    conditioning: Conditioning,
    null: Conditioning | None,
    roles: Tensor,
    *,
    guidance: Guidance,
    t: float,
) -> Tensor:
    """Evaluate what guidance at timestep t needs, 1 to 3 times the batch in one call of ``velocity``, and combine.

    Args:
        velocity: is called with the full prompt first, then without it, then without the conditions.
        conditioning: the prompt of B samples.
        null: the null prompt, or None where no prompt was given.
        roles: (B, M).

    Returns:
        (B, M, C, H, W).
    """
    branches = [(conditioning, roles)]
    excess = []  # s - 1 of each further branch
    if guidance.is_active(t):
        if null is not None and guidance.scale != 1:
            branches.append((null, roles))
            excess.append(guidance.scale - 1)
        if guidance.condition_scale != 1 and bool((roles == Role.CONDITION).any()):
            branches.append((conditioning, without_conditions(roles)))
            excess.append(guidance.condition_scale - 1)
    prompts, branch_roles = zip(*branches, strict=True)
    full, *others = velocity(concatenate(prompts), torch.cat(branch_roles)).chunk(len(branches))
    guided = full
    for scale, other in zip(excess, others, strict=True):
        guided = guided + scale * (full - other)
    return guided
