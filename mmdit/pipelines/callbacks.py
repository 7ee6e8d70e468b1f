"""What a call tells its caller after each step, and what the caller makes of the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.stored import check_dense

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
        """Read a call's arguments; diffusers' callbacks name their own tensors.

        Raises:
            UserError: what can't be called, no list of names, or an unknown one.
        """
        if function is not None and not callable(function):
            raise UserError(f"callback_on_step_end is a {type(function).__name__}: give a function, or None")
        if isinstance(function, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = function.tensor_inputs
        if not isinstance(tensor_inputs, list | tuple):
            raise UserError(
                f"callback_on_step_end_tensor_inputs is {tensor_inputs!r}: give a list of names, of {', '.join(known)}"
            )
        for name in tensor_inputs:
            if name not in known:
                raise unknown_name("name in callback_on_step_end_tensor_inputs", name, known)
        return cls(function, tensor_inputs)

    def __call__(self, pipeline: Any, step: int, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the latents (B, M, C, h, w) to go on with. Raises UserError for anything else."""
        if self.function is None:
            return latents
        tensors = {"latents": latents} if "latents" in self.tensor_inputs else {}
        returned = self.function(pipeline, step, timestep, tensors)
        if not isinstance(returned, Mapping | None):
            raise UserError(
                f"callback_on_step_end returned a {type(returned).__name__}: return {{'latents': ...}} or None"
            )
        changed = (returned or {}).get("latents", latents)
        if not isinstance(changed, Tensor):
            raise UserError(
                f"callback_on_step_end returned latents that are a {type(changed).__name__}: return a tensor"
            )
        check_dense(changed, "what callback_on_step_end returned")
        if changed.shape != latents.shape:
            given_shape, own_shape = tuple(changed.shape), tuple(latents.shape)
            raise UserError(f"callback_on_step_end returned latents of shape {given_shape}: return {own_shape}")
        return changed


NO_CALLBACK = StepCallback()
