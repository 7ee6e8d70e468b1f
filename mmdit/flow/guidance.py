"""Classifier-free guidance (arXiv 2207.12598) on the class and, through ABSENT, on the condition.

v = v_null + s_y (v_class - v_null) + s_c (v_full - v_without_condition), each term where it is asked for, and only while
t is inside the guidance interval (arXiv 2404.07724).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance_interval is {tuple(self.interval)}: give (low, high) with 0 <= low <= high <= 1")
        for name, value in (("guidance_scale", self.scale), ("condition_guidance_scale", self.condition_scale)):
            if not value >= 0:
                raise UserError(f"{name} is {value}: give a number >= 0 (1 = no guidance)")

    def is_active(self, t: float) -> bool:
        return self.interval[0] <= t <= self.interval[1]


def without_conditions(roles: Tensor) -> Tensor:
    """Roles (B, M) with every CONDITION made ABSENT: the null condition."""
    return torch.where(roles == Role.CONDITION, int(Role.ABSENT), roles)


# (class labels or None, roles) -> velocity (B, M, C, H, W)
Velocity = Callable[[Tensor | None, Tensor], Tensor]


def guided_velocity(
    velocity: Velocity, class_labels: Tensor | None, roles: Tensor, guidance: Guidance, t: float
) -> Tensor:
    """Evaluate ``velocity`` as often as guidance at timestep t needs (1 to 3 times) and combine."""
    full = velocity(class_labels, roles)
    if not guidance.is_active(t):
        return full
    guided = full
    if class_labels is not None and guidance.scale != 1:
        guided = guided + (guidance.scale - 1) * (full - velocity(None, roles))
    if guidance.condition_scale != 1 and bool((roles == Role.CONDITION).any()):
        guided = guided + (guidance.condition_scale - 1) * (full - velocity(class_labels, without_conditions(roles)))
    return guided
