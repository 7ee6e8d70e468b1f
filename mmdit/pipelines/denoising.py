"""The only denoising loop of the repository.

B samples, M modalities, C latent channels, h w latent size. Time runs from 1, noise, to 0, data.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.guidance import Guidance, guided_velocity
from mmdit.flow.path import Given, linear_path, place, settle
from mmdit.flow.prediction import PREDICTIONS
from mmdit.flow.schedulers import begin_at, jumps, set_timesteps
from mmdit.modalities import IMAGE
from mmdit.pipelines.callbacks import NO_CALLBACK, StepCallback
from mmdit.pipelines.calls import Call
from mmdit.pipelines.limits import FiniteWatch, predict_in_batches
from mmdit.pipelines.prompts import Branches
from mmdit.task import Role, role_timesteps

if TYPE_CHECKING:
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


@dataclass(frozen=True)
class Denoiser:
    """Takes samples from noise to data: the pipeline's transformer, along the steps of its scheduler.

    Args:
        pipe: whose parts are used.
        call: whose state it keeps; callbacks may change its guidance scale, and interrupt it.
        guidance: its scale is the call's.
        generator: of a scheduler that draws noise.
    """

    pipe: MultimodalDiTPipeline
    call: Call
    guidance: Guidance
    generator: torch.Generator | list[torch.Generator] | None

    def __call__(
        self,
        asked: Branches,
        given: Given,
        roles: Tensor,
        num_inference_steps: int,
        *,
        strength: float = 1.0,
        on_step_end: StepCallback = NO_CALLBACK,
    ) -> Tensor:
        """From ``given.noise`` to latents (B, M, C, h, w), the given ones in place.

        Args:
            asked: what guidance combines.
            given: what is given and kept.
            roles: (B, M).
            num_inference_steps: of a whole path.
            strength: share of the path that is taken; below 1 it begins on the path from ``given.clean``, which is then all
                there.
            on_step_end: is told of each step.
        """
        transformer, call = self.pipe.transformer, self.call
        steps = self._steps(roles, num_inference_steps)

        def velocity(conditioning: Conditioning, roles: Tensor) -> Tensor:
            x_t, timesteps = place(latents, given, roles, t)
            x_in = x_t.to(transformer.dtype)
            internal_scale = self.guidance.internal_scale_at(t)
            later = None if steps is None else steps.timesteps_next(roles, timesteps, t_next, given.condition_time)
            output = predict_in_batches(transformer, x_in, timesteps, roles, conditioning, internal_scale, later)
            return PREDICTIONS[transformer.config.prediction].to_velocity(output.float(), x_t, timesteps)

        if getattr(transformer, "is_cache_enabled", False):
            transformer._reset_stateful_cache()
        scheduler = call.scheduler = copy.deepcopy(self.pipe.__dict__["scheduler"])  # not the call's last one
        set_timesteps(scheduler, num_inference_steps, given.noise.device)
        step_arguments: dict[str, Any] = {"return_dict": False}
        if "generator" in inspect.signature(scheduler.step).parameters:
            step_arguments["generator"] = self.generator
        first = begin_at(scheduler, num_inference_steps, strength)
        sigmas, timesteps = scheduler.sigmas.tolist()[first:], scheduler.timesteps[first:]
        start = given.noise
        if strength < 1:
            times = torch.full_like(roles, sigmas[0], dtype=torch.float32)
            start = linear_path(given.clean, given.noise, times).x_t
        latents, _ = place(start, given, roles, sigmas[0] if first else 1.0)

        call.num_timesteps = len(timesteps)
        finite = FiniteWatch(call.num_timesteps, transformer.dtype)
        with self.pipe.progress_bar(total=-(-len(timesteps) // scheduler.order)) as progress_bar:
            for i, timestep in enumerate(timesteps):
                if call.interrupt:
                    continue
                t, t_next = sigmas[i], sigmas[i + 1]
                scales = replace(self.guidance, scale=call.guidance_scale)
                guided = guided_velocity(
                    velocity, asked.conditioning, asked.null, roles, guidance=scales, t=t, text=asked.text
                )
                latents = scheduler.step(guided, timestep, latents, **step_arguments)[0]
                finite.see(latents, i)
                # The scheduler moved the given latents too: put them back on their path, at the time reached.
                latents, _ = place(latents, given, roles, t_next)
                latents = on_step_end(self.pipe, i, timestep, latents)
                if i == call.num_timesteps - 1 or (i + 1) % scheduler.order == 0:
                    progress_bar.update()
        finite.check()
        return settle(latents, given, roles)

    def _steps(self, roles: Tensor, num_inference_steps: int) -> _Steps | None:
        """How the transformer is told where a step leads; None = not at all, the scheduler takes the velocity.

        Raises UserError as ``check_scheduler``.
        """
        scheduler, config = self.pipe.__dict__["scheduler"], self.pipe.transformer.config
        check_scheduler(scheduler, self.pipe.transformer)
        if not jumps(scheduler):
            return None
        estimated = torch.zeros_like(roles[:, 0], dtype=torch.bool)
        if num_inference_steps == 1 and IMAGE in config.modalities:
            estimated = roles[:, list(config.modalities).index(IMAGE)] == Role.CONDITION
        return _Steps(estimated)


def check_scheduler(scheduler: Any, transformer: Any) -> None:
    """Raise UserError for a scheduler that tells the transformer where its steps lead, and one that can't be told."""
    if jumps(scheduler) and not transformer.config.second_time:
        raise UserError(
            "scheduler flow_map takes the steps that a model with a second time was trained for, and this one has none: "
            "take another, such as euler"
        )


@dataclass(frozen=True)
class _Steps:
    """Steps of a flow map. ``estimated`` (B,) bool: whose single step ends in the mean of what is asked for instead."""

    estimated: Tensor

    def timesteps_next(self, roles: Tensor, timesteps: Tensor, t_next: float, condition_time: float) -> Tensor:
        """(n B, M), of n copies of the batch; ``timesteps`` (n B, M) where there is no step."""
        later = role_timesteps(roles, torch.full((len(roles),), t_next, device=roles.device), condition_time)
        stays = self.estimated.repeat(len(roles) // len(self.estimated))
        return torch.where(stays[:, None], timesteps, later)
