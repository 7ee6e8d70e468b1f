"""What a call that doesn't say otherwise uses: saved in the model folder, where the model has its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdit.errors import UserError, unknown_name

UNDERSTANDING_STEPS = 1
MAX_STEPS = 10_000


@dataclass(frozen=True)
class Defaults:
    """A model's own settings of a call. A folder without them, as every older one is, means these.

    Args:
        num_inference_steps: steps of the sampler, but for understanding, which takes ``UNDERSTANDING_STEPS``.
        guidance_scale: on class and prompt; 1 = off.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 2.0

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Defaults:
        """Read them as a folder has them; what is left out is as above. Raises UserError for other names and values."""
        if values is None:
            return cls()
        if not isinstance(values, Mapping):
            raise UserError(
                f"defaults is a {type(values).__name__}: give an object of {', '.join(cls.__annotations__)}"
            )
        for name in values:
            if name not in cls.__annotations__:
                raise unknown_name("name in defaults", name, cls.__annotations__)
        made = cls(**values)
        steps, scale = made.num_inference_steps, made.guidance_scale
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
            raise UserError(f"defaults: num_inference_steps is {steps!r}: give a whole number from 1 to {MAX_STEPS}")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
            raise UserError(f"defaults: guidance_scale is {scale!r}: give a number >= 0 (1 = no guidance)")
        return made
