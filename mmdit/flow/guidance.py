"""Classifier-free guidance (arXiv 2207.12598) on the class and, through ABSENT, on the condition.

v = v_full + (s_y - 1) (v_full - v_without_class) + (s_c - 1) (v_full - v_without_condition), each term where it is
asked for, and only while t is inside the guidance interval (arXiv 2404.07724).

Where a prompt has subjects, v_full fuses what text and images ask for together (u) with what the text asks for alone (y), all
the time: v_full = α v_u + (1 - α) v_y. With s_y = w this is eq. 8 of UMM-Diffusion (arXiv 2303.09319),
α w v_u + (1 - α) w v_y + (1 - w) v_none, whose coefficients sum to one, so that it holds for velocities as for noise.

Each of these may itself be guided by the model's own middle (internal guidance, arXiv 2512.24176): v = v_i + w (v_f - v_i), of
the head on a middle block and the last one, both of the same evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
        fusing_scale: α, from 0 (the text alone) to 1 (text and subjects' images).
        internal_scale: w, away from what the middle block predicts; 1 = none.
        internal_interval: (low, high), the timesteps between which that is on.
    """

    scale: float = 1.0
    condition_scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    fusing_scale: float = 1.0
    internal_scale: float = 1.0
    internal_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_interval("guidance_interval", self.interval)
        check_interval("internal_guidance_interval", self.internal_interval)
        for name, value in (
            ("guidance_scale", self.scale),
            ("condition_guidance_scale", self.condition_scale),
            ("internal_guidance_scale", self.internal_scale),
        ):
            if not is_number(value) or not 0 <= value < math.inf:
                raise UserError(f"{name} is {value!r}: give a number >= 0 (1 = no guidance)")
        if not is_number(self.fusing_scale) or not 0 <= self.fusing_scale <= 1:
            raise UserError(
                f"fusing_scale is {self.fusing_scale!r}: give a number from 0 (text) to 1 (subjects' images)"
            )

    def is_active(self, t: float) -> bool:
        """Whether guidance is on at time t (0 = data, 1 = noise)."""
        return self.interval[0] <= t <= self.interval[1]

    def internal_scale_at(self, t: float) -> float:
        """w at time t, 1 outside of its interval."""
        return self.internal_scale if self.internal_interval[0] <= t <= self.internal_interval[1] else 1.0


def is_number(value: object) -> bool:
    """Whether a value is a real number, and not one of True and False, which Python counts among them."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_interval(name: str, interval: object) -> None:
    """Raise UserError for anything but two timesteps in order."""
    pair = tuple(interval) if isinstance(interval, Iterable) else ()
    if len(pair) != 2 or not all(map(is_number, pair)) or not 0 <= pair[0] <= pair[1] <= 1:
        raise UserError(f"{name} is {interval!r}: give (low, high) with 0 <= low <= high <= 1")


def internally_guided(sample: Tensor, internal: Tensor, scale: float | Tensor) -> Tensor:
    """D_i + w (D_f - D_i): the last head's prediction, away from the middle's (arXiv 2512.24176); in fp32.

    What is predicted may be the velocity or the clean latent: one follows linearly from the other.
    """
    sample, internal = sample.float(), internal.float()
    return internal + scale * (sample - internal)


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
    text: Conditioning | None = None,
) -> Tensor:
    """Evaluate what guidance at timestep t needs, 1 to 5 times the batch in one call of ``velocity``, and combine.

    Args:
        velocity: is called with the full prompt first, then with its text alone, then without it, then without the conditions.
        conditioning: the prompt of B samples.
        null: the null prompt, or None where no prompt was given.
        roles: (B, M).
        text: the prompt without its subjects' images; None = it has none, and ``fusing_scale`` has nothing to do.

    Returns:
        (B, M, C, H, W).
    """
    alpha = guidance.fusing_scale
    fused: list[tuple[float, Conditioning]] = [(1.0, conditioning)]
    if text is not None and alpha < 1:
        fused = [(1.0, text)] if alpha == 0 else [(alpha, conditioning), (1 - alpha, text)]
    branches = [(prompt, roles) for _, prompt in fused]
    terms: list[tuple[float, list[float]]] = []  # s - 1, and the weights of the branches of what is left out
    if guidance.is_active(t):
        if null is not None and guidance.scale != 1:
            branches.append((null, roles))
            terms.append((guidance.scale - 1, [1.0]))
        if guidance.condition_scale != 1 and bool((roles == Role.CONDITION).any()):
            branches += [(prompt, without_conditions(roles)) for _, prompt in fused]
            terms.append((guidance.condition_scale - 1, [weight for weight, _ in fused]))
    prompts, branch_roles = zip(*branches, strict=True)
    results = iter(velocity(concatenate(prompts), torch.cat(branch_roles)).chunk(len(branches)))
    full = _mean([weight for weight, _ in fused], results)
    guided = full
    for scale, weights in terms:
        guided = guided + scale * (full - _mean(weights, results))
    return guided


def _mean(weights: Sequence[float], results: Iterator[Tensor]) -> Tensor:
    """Weighted sum of the next results, exactly the result itself for a single weight 1."""
    if list(weights) == [1.0]:
        return next(results)
    total = weights[0] * next(results)
    for weight in weights[1:]:
        total = total + weight * next(results)
    return total
