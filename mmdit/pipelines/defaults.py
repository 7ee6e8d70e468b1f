"""What a call that doesn't say otherwise uses: saved in the model folder, where the model has its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdit.errors import UserError, unknown_name
from mmdit.flow.guidance import check_interval

UNDERSTANDING_STEPS = 1
MAX_STEPS = 10_000


@dataclass(frozen=True)
class Defaults:
    """A model's own settings of a call. A folder without them, as every older one is, means these.

    Args:
        num_inference_steps: steps of the sampler, but for understanding, which takes ``UNDERSTANDING_STEPS``.
        guidance_scale: on class and prompt; 1 = off.
        internal_guidance_scale: away from the middle block's prediction, but for understanding; 1 = off.
        internal_guidance_interval: (low, high), the timesteps between which that is on.
        prompt_num_inference_steps, prompt_guidance_scale, prompt_internal_guidance_scale: where a prompt is given, beside a class
            or not; None = as without one.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 2.0
    internal_guidance_scale: float = 1.0
    internal_guidance_interval: tuple[float, float] = (0.0, 1.0)
    prompt_num_inference_steps: int | None = None
    prompt_guidance_scale: float | None = None
    prompt_internal_guidance_scale: float | None = None

    def steps(self, *, prompt: bool) -> int:
        """Steps of a call with a prompt, or without."""
        own = self.prompt_num_inference_steps if prompt else None
        return self.num_inference_steps if own is None else own

    def guidance(self, *, prompt: bool) -> float:
        """Guidance of a call with a prompt, or without."""
        own = self.prompt_guidance_scale if prompt else None
        return self.guidance_scale if own is None else own

    def internal_guidance(self, *, prompt: bool) -> float:
        """Internal guidance of a call with a prompt, or without."""
        own = self.prompt_internal_guidance_scale if prompt else None
        return self.internal_guidance_scale if own is None else own

    def guided(
        self, scale: float | None, internal: float | None, *, prompt: bool, understanding: bool = False
    ) -> tuple[float, float]:
        """Guidance and internal guidance of a call that names these, None = not.

        A model's own are one setting: a call that names the first alone has no internal guidance. Nor has understanding.
        """
        if internal is None:
            internal = 1.0 if understanding or scale is not None else self.internal_guidance(prompt=prompt)
        return self.guidance(prompt=prompt) if scale is None else scale, internal

    def described(self) -> str:
        """What a model card says of them."""
        own, on_prompts = self._settings(prompt=False), self._settings(prompt=True)
        different = [text for text in on_prompts if text not in own]
        if len(on_prompts) < len(own):
            different.append("no internal guidance")
        prompts = f" (on prompts {', '.join(different)})" if different else ""
        return ", ".join(own) + prompts

    def _settings(self, *, prompt: bool) -> list[str]:
        internal = self.internal_guidance(prompt=prompt)
        return [
            f"{self.steps(prompt=prompt)} steps",
            f"guidance {self.guidance(prompt=prompt):g}",
            *([] if internal == 1 else [f"internal guidance {internal:g}"]),
        ]

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
        for name in ("num_inference_steps", "prompt_num_inference_steps"):
            steps = getattr(made, name)
            if steps is None and name in _ON_PROMPTS:
                continue
            if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
                raise UserError(f"defaults: {name} is {steps!r}: give a whole number from 1 to {MAX_STEPS}")
        for name in (
            "guidance_scale",
            "internal_guidance_scale",
            "prompt_guidance_scale",
            "prompt_internal_guidance_scale",
        ):
            scale = getattr(made, name)
            if scale is None and name in _ON_PROMPTS:
                continue
            if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
                raise UserError(f"defaults: {name} is {scale!r}: give a number >= 0 (1 = no guidance)")
        check_interval("defaults: internal_guidance_interval", made.internal_guidance_interval)
        return made


_ON_PROMPTS = frozenset(name for name in Defaults.__annotations__ if name.startswith("prompt_"))


def lacks_middle(transformer: Any) -> bool:
    """Whether a cache of diffusers leaves out blocks, and so what a head on a middle one would read."""
    return bool(getattr(transformer, "is_cache_enabled", False))


def check_internal(scale: float, transformer: Any, name: str = "internal_guidance_scale") -> None:
    """Raise UserError for internal guidance of a model that can't give it."""
    if scale == 1:
        return
    if transformer.config.get("internal_guidance_depth") is None:
        raise UserError(
            f"{name} is {scale:g}: this model has no head on a middle block (model.internal_guidance_depth trains one), give 1"
        )
    if lacks_middle(transformer):
        raise UserError(f"{name} is {scale:g}: a cache leaves out the middle block that it reads, disable it or give 1")
