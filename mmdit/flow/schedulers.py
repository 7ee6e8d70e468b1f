"""Samplers by name: diffusers' flow-matching schedulers as they are, and MMGen's Euler–Maruyama.

All integrate from t = 1 (noise) to t = 0 (data) and take a velocity ε - x_0. ``scheduler.sigmas[i]`` is t at step i;
``scheduler.timesteps`` are the same times 1000, rounded by some schedulers, so the network is given sigmas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mmdit.errors import UserError, unknown_name


@dataclass
class EulerMaruyamaOutput(BaseOutput):
    """``prev_sample`` (B, ...): the state at the next timestep."""

    prev_sample: Tensor


class EulerMaruyamaScheduler(SchedulerMixin, ConfigMixin):
    """Reverse-time SDE of the linear path by Euler–Maruyama (SiT, arXiv 2401.08740, eq. 4, diffusion w_t = 2 t).

    score = -((1 - t) v + x) / t,   dx = (v - t score) dt + sqrt(2 t) dW. Times: linspace(1, last_time, n), then 0 by a
    step without noise (MMGen's and REPA's 250-step sampler).

    Args:
        num_train_timesteps: scale of ``timesteps``, as in diffusers.
        last_time: t of the last noisy state.
        shift: of the times, ``shifted``.
    """

    order = 1

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, last_time: float = 0.04, shift: float = 1.0) -> None:
        self.init_noise_sigma = 1.0
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay out the steps. Raises ValueError for fewer than one."""
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps is {num_inference_steps}: give at least 1")
        self.num_inference_steps = num_inference_steps
        times = torch.linspace(1.0, self.config.last_time, num_inference_steps, dtype=torch.float64)
        times = shifted(times, self.config.shift)
        self.sigmas = torch.cat([times, times.new_zeros(1)])  # (n + 1,), on the CPU as in diffusers
        self.timesteps = (times * self.config.num_train_timesteps).to(device=device, dtype=torch.float32)
        self.step_index: int | None = None

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """Return the sample: this process needs no scaling."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """(1 - t) sample + t noise, with t = timestep / num_train_timesteps of shape (B,)."""
        t = (timestep / self.config.num_train_timesteps).to(sample).view(-1, *[1] * (sample.ndim - 1))
        return (1 - t) * sample + t * noise

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> EulerMaruyamaOutput | tuple[Tensor]:
        """Take one step from ``sample`` with the velocity ``model_output`` at ``timestep``.

        Computes in float64, on Apple's GPUs in float32, the widest that they have.
        """
        if self.step_index is None:
            gaps = (self.timesteps.cpu() - float(timestep)).abs()
            self.step_index = int(gaps.argmin())
        t, t_next = float(self.sigmas[self.step_index]), float(self.sigmas[self.step_index + 1])
        wide = torch.float32 if sample.device.type == "mps" else torch.float64
        x, velocity = sample.to(wide), model_output.to(wide)
        score = -((1 - t) * velocity + x) / t
        x = x + (t_next - t) * (velocity - t * score)
        if t_next > 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            x = x + (2 * t * (t - t_next)) ** 0.5 * noise
        self.step_index += 1
        prev_sample = x.to(sample.dtype)
        return EulerMaruyamaOutput(prev_sample) if return_dict else (prev_sample,)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


class FlowMapScheduler(FlowMatchEulerDiscreteScheduler):
    """Steps of a model that was trained to take them: x_s = x_t + (s - t) u(x_t, t, s), u its mean velocity between s and t.

    Euler's step, but the transformer is told where it leads (``timesteps_next``), so that it is exact at any length as far as
    the model has learned it (``mmdit.flow.flow_map``). With any other scheduler the same model gives its velocity.

    Where RGB is given and one step is taken, the model is asked for the velocity all the same: its step ends in the mean of
    what may be there, which is the better estimate; a sample of it takes two steps.
    """


Device = torch.device | str | None


def shifted(times: Any, shift: float) -> Any:
    """Move times in [0, 1] towards noise: t -> s t / (1 + (s - 1) t); s = 1 leaves them (Stable Diffusion 3, arXiv 2403.03206,
    eq. 23). An array or a tensor."""
    return shift * times / (1 + (shift - 1) * times)


def _lay_out_as_they_do(scheduler: SchedulerMixin, sigmas: np.ndarray, device: Device) -> None:
    scheduler.set_timesteps(len(sigmas), device=device)


def _lay_out_given(scheduler: SchedulerMixin, sigmas: np.ndarray, device: Device) -> None:
    scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)


def _lay_out_twice(scheduler: SchedulerMixin, sigmas: np.ndarray, device: Device) -> None:
    """Heun takes no sigmas, and lays each inner one out twice."""
    scheduler.set_timesteps(len(sigmas), device=device)
    sigmas = shifted(sigmas, scheduler.config.shift)
    twice = torch.tensor(sigmas, dtype=torch.float32).repeat_interleave(2)[1:]
    scheduler.sigmas = torch.cat([twice, twice.new_zeros(1)])
    scheduler.timesteps = (twice * scheduler.config.num_train_timesteps).to(device=device)


@dataclass(frozen=True)
class SchedulerKind:
    """All that the repository knows about a scheduler.

    Args:
        cls: its class.
        process: what it integrates, "ODE" or "SDE"; reports name it, because their numbers differ.
        color, marker: of its line in charts, whichever of them are drawn (colours of Okabe and Ito).
        lay_out: (scheduler, times from 1 to 1/n, device): sets its timesteps.
        settings: what it is built with.
        shift: what it calls the shift of its times, ``shifted``.
        jumps: whether it takes the mean velocity of its step, which only a model with a second time has.
    """

    cls: type[Any]
    process: str
    color: str
    marker: str
    lay_out: Callable[[SchedulerMixin, np.ndarray, Device], None] = _lay_out_as_they_do
    settings: Mapping[str, Any] = field(default_factory=dict)
    shift: str = "shift"
    jumps: bool = False


_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS: dict[str, SchedulerKind] = {
    "euler": SchedulerKind(FlowMatchEulerDiscreteScheduler, "ODE", "#0072B2", "o", _lay_out_given),
    "heun": SchedulerKind(FlowMatchHeunDiscreteScheduler, "ODE", "#E69F00", "s", _lay_out_twice),
    "unipc": SchedulerKind(UniPCMultistepScheduler, "ODE", "#009E73", "^", settings=_FLOW, shift="flow_shift"),
    "dpmsolver++": SchedulerKind(
        DPMSolverMultistepScheduler, "ODE", "#CC79A7", "D", settings=_FLOW, shift="flow_shift"
    ),
    "euler_maruyama": SchedulerKind(EulerMaruyamaScheduler, "SDE", "#555555", "v"),
    "flow_map": SchedulerKind(FlowMapScheduler, "ODE", "#D55E00", "P", _lay_out_given, jumps=True),
}


def make_scheduler(name: str, shift: float = 1.0) -> SchedulerMixin:
    """Build a scheduler from ``SCHEDULERS``, whose times are ``shifted``: above 1 more of its steps are at much noise.

    Raises UserError for an unknown name or a shift that isn't above 0.
    """
    if name not in SCHEDULERS:
        raise unknown_name("scheduler", name, SCHEDULERS)
    if not 0 < shift < math.inf:
        raise UserError(f"shift of the scheduler is {shift}: give a number above 0 (1 = none)")
    kind = SCHEDULERS[name]
    return kind.cls(**{**kind.settings, kind.shift: shift})


def shift_of(scheduler: SchedulerMixin) -> float:
    """The shift of a scheduler's times, 1 = none."""
    kind = _kind_of(scheduler)
    return 1.0 if kind is None else float(scheduler.config.get(kind.shift, 1.0))


def jumps(scheduler: SchedulerMixin) -> bool:
    """Whether its steps take the mean velocity between two times (``FlowMapScheduler``)."""
    kind = _kind_of(scheduler)
    return kind is not None and kind.jumps


def _kind_of(scheduler: SchedulerMixin) -> SchedulerKind | None:
    kinds = [kind for kind in SCHEDULERS.values() if isinstance(scheduler, kind.cls)]
    exact = [kind for kind in kinds if type(scheduler) is kind.cls]
    return next(iter(exact + kinds), None)


def set_timesteps(scheduler: SchedulerMixin, num_inference_steps: int, device: Device = None) -> None:
    """Lay out n steps that start at pure noise, t = 1.

    diffusers' Euler and Heun by default space n points from 1 to 1/1000 and so waste their last step; like diffusers'
    own pipelines we take t = 1, 1 - 1/n, …, 1/n, and then the scheduler's own shift.

    Raises:
        UserError: fewer than one step, or a scheduler of another process than the linear path from noise to data.
    """
    if num_inference_steps < 1:
        raise UserError(f"num_inference_steps is {num_inference_steps}: give at least 1")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else some find their first step by its timestep, rounded to an integer
    sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    kind = _kind_of(scheduler)
    (_lay_out_as_they_do if kind is None else kind.lay_out)(scheduler, sigmas, device)
    _check_flow_matching(scheduler)


def steps_taken(num_inference_steps: int, strength: float) -> int:
    """How many of n steps are taken, the last n x ``strength``. Raises UserError where none is left, but at strength 0."""
    taken = int(num_inference_steps * strength + 1e-6)  # 0.29 x 100 is a little less than 29
    if strength > 0 and taken == 0:
        least = 1 / num_inference_steps
        raise UserError(
            f"strength {strength:g} of {num_inference_steps} steps leaves no step: give at least {least:.2g}, or more steps"
        )
    return taken


def begin_at(scheduler: SchedulerMixin, num_inference_steps: int, strength: float) -> int:
    """Let steps that are laid out begin late, as diffusers' image-to-image does; UserError as ``steps_taken``.

    Returns:
        The index of the first one in ``scheduler.timesteps`` and ``scheduler.sigmas``; at strength 0 that of no step.
    """
    skipped = num_inference_steps - steps_taken(num_inference_steps, strength)
    first = min(skipped * scheduler.order, len(scheduler.timesteps))
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return first


def _check_flow_matching(scheduler: SchedulerMixin) -> None:
    """Refuse a scheduler whose steps would be noise: ``from_config`` of diffusers makes one without a word."""
    sigmas = getattr(scheduler, "sigmas", None)
    predicts_velocity = scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction"
    if sigmas is None or not predicts_velocity or not 0 <= float(sigmas.min()) <= float(sigmas.max()) <= 1:
        raise UserError(
            f"scheduler {type(scheduler).__name__} is not set up for flow matching: take "
            f"mmdit.flow.schedulers.make_scheduler(name), with one of {', '.join(SCHEDULERS)}"
        )
