"""What objectives share that learn to step from a time t straight to an earlier one s: the flow map.

The network's output with ``timesteps_next`` s is the mean velocity from x_t to x_s (MeanFlow, arXiv 2505.13447, eq. 3),

    u(x_t, t, s) = 1 / (t - s) ∫_s^t v(x_τ, τ) dτ,        x_s = x_t + (s - t) u(x_t, t, s),

and with s = t, which a network takes like no second time at all, the velocity v itself. (SoFlow, arXiv 2512.15657, calls
x_s the solution function and u its Euler parametrisation.) Where the network predicts the clean latent, u = (x_t - x̂) / t
as ever: x̂ is where the straight line from x_t through x_s meets t = 0, so x_0 itself for s = 0.

Each modality has its own times: what is generated steps from the sample's t to its s; what is given stays at t_c, what is
absent at 1. B batch, N samples of it that step, M modalities, C H W latent.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.flow_matching import FlowDraw, FlowObjective, Network, ObjectiveOutput, Teach, masked_means
from mmdit.flow.guidance import Guidance
from mmdit.flow.path import PathSample
from mmdit.task import Role, supervised_mask

# Steps begin at least here: nearer to the data there is no way left to step over, and a clean prediction's 1 / t is bounded
# (``prediction.MIN_VELOCITY_TIME``), so that what a step ends in would no longer follow from where it began.
MIN_JUMP_TIME = 0.05
ADAPTIVE_OFFSET = 0.01  # of SoFlow's adaptive weight


@dataclass(frozen=True)
class Jumps:
    """The samples of a batch that step, N of them.

    Args:
        x_t: (N, M, C, H, W), where they are.
        velocity: (N, M, C, H, W), of the field there: of the path, or guided.
        t, s: (N, M), their times and the times that they step to.
        roles: (N, M).
        conditioning: their prompts.
        progress: of the training, in [0, 1].
    """

    x_t: Tensor
    velocity: Tensor
    t: Tensor
    s: Tensor
    roles: Tensor
    conditioning: Conditioning
    progress: float

    @property
    def moving(self) -> Tensor:
        """(N, M) bool, the modalities that are on the sample's path; the others stay where they are."""
        return (self.roles == Role.GENERATE) | (self.roles == Role.UNSUPERVISED)


class FlowMapObjective(FlowObjective):
    """Flow matching on most of the batch, and on the rest a step's mean velocity against a target without a gradient.

    A subclass says what that target is. Both kinds of samples go through the network together, those of flow matching
    with s = t, so multi-step sampling with the velocity stays what it was. The loss of an entry that steps is

        |u - target|² / r x (|u - target|² / r² + c)^-p,      the second factor without a gradient

    with the prediction's own weight and error measure; r is how far the target looks ahead (1 where it uses a derivative), so
    that the gradient is the same for every small r, and p the adaptive weight's power (SoFlow; MeanFlow, section 4.3).

    With ``guidance_scale`` w the field itself is the guided one, v + (w - 1) (v - v(no prompt)) (MeanFlow, section 4.2), for
    flow matching too: the trained model then needs one evaluation a step, and no guidance in sampling. Samples without a
    prompt learn the plain field, which is what v(no prompt) is read from. The path's v is noisy, w times as much in that sum;
    ``guidance_mix`` κ puts the network's own velocity in its place, (1 - κ) of the sum above + κ u(x_t, t, t), which has the same
    solution (MeanFlow, appendix on improved guidance; its ω is w (1 - κ)). κ = 1 - 1 / w leaves the noise as it was.

    Args:
        share: of the samples of a batch that step; 0 = none, which is flow matching.
        data_share: of those, the share that steps to s = 0, the data; the others' s is uniform between 0 and their t.
        guidance_scale: w; 1 = none.
        guidance_interval: (low, high), the t between which the field is guided.
        guidance_mix: κ in [0, 1), the share of the network's own velocity in the guided one; above 0 costs a forward pass more.
        adaptive_power: p; 0 = the squared error alone.
        num_inference_steps: what the trained model's pipeline takes where a call doesn't say.
        common: as in ``FlowObjective``.

    Raises:
        UserError: a share or a power outside [0, 1], guidance as ``Guidance`` refuses it, or no step.
    """

    needs_second_time: ClassVar[bool] = True
    scheduler: ClassVar[str] = "flow_map"

    def __init__(
        self,
        *,
        share: float = 0.25,
        data_share: float = 0.25,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        guidance_mix: float = 0.0,
        adaptive_power: float = 0.5,
        num_inference_steps: int = 2,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        for name, value in (("share", share), ("data_share", data_share)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} of the objective is {value}: give a share from 0 to 1")
        if not 0 <= guidance_mix < 1:
            raise UserError(f"guidance_mix of the objective is {guidance_mix}: give a share from 0 to below 1")
        if guidance_mix > 0 and guidance_scale == 1:
            raise UserError(
                f"guidance_mix of the objective is {guidance_mix}, and guidance_scale 1, no guidance: give a scale above 1 too"
            )
        if not 0 <= adaptive_power <= 1:
            raise UserError(f"adaptive_power of the objective is {adaptive_power}: give a number from 0 (none) to 1")
        if type(num_inference_steps) is not int or num_inference_steps < 1:
            raise UserError(
                f"num_inference_steps of the objective is {num_inference_steps!r}: give a whole number, at least 1"
            )
        self.share, self.data_share, self.adaptive_power = share, data_share, adaptive_power
        self.guidance = Guidance(guidance_scale, interval=guidance_interval)  # type: ignore[arg-type]
        self.needs_null, self.guidance_mix = guidance_scale != 1, guidance_mix
        self.num_inference_steps = num_inference_steps

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Few steps; no guidance where it is in the network."""
        guided = {"guidance_scale": 1.0} if self.needs_null else {}
        return {"num_inference_steps": self.num_inference_steps, **guided}

    @abstractmethod
    def jump(self, network: Network, jumps: Jumps) -> tuple[Tensor, float]:
        """The target of the mean velocity, (N, M, C, H, W), and r in (0, 1]. Called without gradients."""

    def draw(
        self,
        batch_size: int,
        latent_shape: tuple[int, ...],
        generator: torch.Generator,
        noise_generator: torch.Generator | None = None,
    ) -> FlowDraw:
        """Draw what flow matching draws, then who steps and where to; ``next_t`` is t for the others."""
        draw = super().draw(batch_size, latent_shape, generator, noise_generator)
        order = torch.randperm(batch_size, generator=generator)
        rounding, fraction, to_data = (torch.rand(batch_size, generator=generator) for _ in range(3))
        # A number of samples, not a chance of each: the share of a small batch hardly varies. Rounded at random.
        chosen = order < int(self.share * batch_size + float(rounding[0]))
        t = torch.where(chosen, draw.t.clamp_min(MIN_JUMP_TIME), draw.t)
        s = torch.where(to_data < self.data_share, 0.0, fraction * t)
        return replace(draw, t=t, next_t=torch.where(chosen, s, t))

    def __call__(
        self,
        network: Network,
        clean: Tensor,
        conditioning: Conditioning,
        draw: FlowDraw,
        mean_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts,
        teach: Teach | None = None,
        null: Conditioning | None = None,
    ) -> ObjectiveOutput:
        """Losses are "loss" (weighted sum), "loss/<modality>" of flow matching and "jump/<modality>" of the steps.

        Where everything is drawn for s = t and nothing is guided, they are those of ``FlowObjective``. Known and missing
        parts, weights and prompts are treated as there.

        Args:
            null: the conditioning of "no prompt", of B samples, where the field is guided.
        """
        path, clean = self.learned_path(clean, draw, teach)
        timesteps_next = draw.timesteps_next
        output = network(path.x_t, path.timesteps, draw.roles, conditioning, timesteps_next=timesteps_next)
        jumping = torch.zeros_like(draw.t, dtype=torch.bool) if draw.next_t is None else draw.next_t < draw.t  # (B,)
        velocity, guided = self._field(network, path, conditioning, draw, null)

        rows = jumping.nonzero().flatten()
        empty = len(rows) == 0
        if empty:  # all processes run the network equally often: sharded weights are gathered in each run
            rows = torch.zeros(1, dtype=torch.int64, device=jumping.device)
        jumps = Jumps(
            path.x_t[rows],
            velocity[rows],
            path.timesteps[rows],
            timesteps_next[rows],
            draw.roles[rows],
            conditioning.rows(rows),
            draw.progress,
        )
        with torch.no_grad():
            mean_velocity, ratio = self.jump(network, jumps)
            target = velocity if empty else velocity.index_copy(0, rows, mean_velocity.to(velocity))
            target = self.prediction.from_velocity(target, path.x_t, path.timesteps)
            changed = (jumping | guided)[:, None, None, None, None]
            target = torch.where(changed, target, self.prediction.target(path, clean))

        per_entry, has_unknown = self.entries(output, target, path, draw)  # (B, M)
        scaled = (per_entry.detach() / ratio**2 + ADAPTIVE_OFFSET) ** -self.adaptive_power
        per_entry = torch.where(jumping[:, None], per_entry * scaled / ratio, per_entry)
        mask = supervised_mask(draw.roles) & has_unknown
        masks = torch.stack([mask, mask & ~jumping[:, None], mask & jumping[:, None]])  # (3, B, M)
        counts = mean_over_processes(masks.sum(1).to(per_entry.dtype))  # (3, M)
        whole, flow, jump = (masked_means(per_entry, *each) for each in zip(masks, counts, strict=True))
        losses = {"loss": self.weighted(whole), **self.named("loss", flow), **self.named("jump", jump)}
        return ObjectiveOutput(losses, output)

    @torch.no_grad()
    def _field(
        self, network: Network, path: PathSample, conditioning: Conditioning, draw: FlowDraw, null: Conditioning | None
    ) -> tuple[Tensor, Tensor]:
        """The velocity that is learned, (B, M, C, H, W), and for which samples it is not the path's, (B,) bool."""
        nobody = torch.zeros_like(draw.t, dtype=torch.bool)
        if not self.needs_null:
            return path.velocity, nobody
        assert null is not None
        low, high = self.guidance.interval
        guided = conditioning.differs_from(null) & (draw.t >= low) & (draw.t <= high)
        rows = guided.nonzero().flatten()
        if len(rows) == 0:  # as above
            rows, guided = torch.zeros(1, dtype=torch.int64, device=rows.device), nobody
        x_t, t, own = path.x_t[rows], path.timesteps[rows], path.velocity[rows]

        def velocity(prompt: Conditioning) -> Tensor:
            output = network(x_t, t, draw.roles[rows], prompt.rows(rows), timesteps_next=t).sample
            return self.prediction.to_velocity(output.to(x_t), x_t, t)

        pushed = own + (self.guidance.scale - 1) * (own - velocity(null))
        if self.guidance_mix > 0:
            pushed = pushed + self.guidance_mix * (velocity(conditioning) - pushed)
        if draw.known is not None:  # what is known moves on its own path
            pushed = torch.where(draw.known[rows][:, :, None], own, pushed)
        return torch.where(
            guided[:, None, None, None, None], path.velocity.index_copy(0, rows, pushed), path.velocity
        ), guided
