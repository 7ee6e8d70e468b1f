"""What a call tells its caller after each step, and what the caller makes of the latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from mmdit.errors import UserError, unknown_name

OnStepEnd: TypeAlias = Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None


@dataclass(frozen=True)
class StepCallback:
    """``callback_on_step_end`` of a call; without a function it leaves the latents as they are.

    Args:
        function: is called as (pipeline, step, timestep, tensors) and returns those that it changes.
        tensor_inputs: names of the tensors that it is given.
    """

    function: OnStepEnd = None
    tensor_inputs: Sequence[str] = ()

    @classmethod
    def of(cls, function: OnStepEnd, tensor_inputs: Sequence[str], known: Sequence[str]) -> StepCallback:
        """Read a call's arguments; diffusers' callbacks name their own tensors. Raises UserError for an unknown name."""
        if isinstance(function, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = function.tensor_inputs
        for name in tensor_inputs:
            if name not in known:
                raise unknown_name("name in callback_on_step_end_tensor_inputs", name, known)
        return cls(function, tensor_inputs)

    def __call__(self, pipeline: Any, step: int, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the latents (B, M, C, h, w) to go on with. Raises UserError for some of another shape."""
        if self.function is None:
            return latents
        tensors = {"latents": latents} if "latents" in self.tensor_inputs else {}
        changed: Tensor = (self.function(pipeline, step, timestep, tensors) or {}).get("latents", latents)
        if changed.shape != latents.shape:
            given_shape, own_shape = tuple(changed.shape), tuple(latents.shape)
            raise UserError(f"callback_on_step_end returned latents of shape {given_shape}: return {own_shape}")
        return changed


NO_CALLBACK = StepCallback()
