"""The training objective: masked, per-modality-weighted flow matching.

Shapes: B batch, M modalities, C H W latent. Everything random is drawn first, with an explicit generator, for the whole
global batch; each process keeps its own rows. So a step depends on (seed, step) alone, not on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.path import linear_path
from mmdit.flow.prediction import PREDICTIONS
from mmdit.flow.timesteps import TimestepSampler
from mmdit.task import Role, TaskMixture, role_timesteps, supervised_mask, without_missing

# (x_t, timesteps, roles, conditioning) -> what the network predicts, (B, M, C, H, W)
Network = Callable[[Tensor, Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True)
class FlowDraw:
    """The random part of a step: ``roles`` (B, M), ``t`` and ``condition_t`` (B,), ``noise`` (B, M, C, H, W)."""

    roles: Tensor
    t: Tensor
    condition_t: Tensor
    noise: Tensor

    @property
    def timesteps(self) -> Tensor:
        """Timestep of every modality, (B, M)."""
        return role_timesteps(self.roles, self.t, self.condition_t)

    def shard(self, rank: int, world_size: int) -> FlowDraw:
        """Rows rank, rank + world_size, …: the order in which a distributed sampler deals samples out."""
        rows = slice(rank, None, world_size)
        return FlowDraw(self.roles[rows], self.t[rows], self.condition_t[rows], self.noise[rows])

    def without_missing(self, present: Tensor) -> FlowDraw:
        """Make what the data lacks ABSENT; ``present`` is (B, M) bool."""
        return replace(self, roles=without_missing(self.roles, present.to(self.roles.device)))

    def to(self, device: torch.device | str) -> FlowDraw:
        move = {field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        return FlowDraw(**move)


class FlowObjective:
    """Velocity (or clean-latent) regression along the linear path.

    Args:
        mixture: draws the roles.
        timesteps: draws one t per sample, shared by all that it generates.
        loss_weights: weight per modality, in the model's order.
        prediction: name in ``PREDICTIONS``; must be the model's own.
        max_condition_time: conditions are at t_c ~ U[0, max_condition_time] (MMGen: 0.01).
        pure_noise_share: of the samples with a condition, this share is trained at t = 1. There the rest must follow from
            the condition alone; at t = 0.9 the coarse layout of every modality can still be read off its own noisy latents
            (averaging over h w locations), so other timesteps teach little about what a single step needs.
    """

    def __init__(
        self,
        mixture: TaskMixture,
        timesteps: TimestepSampler,
        loss_weights: Mapping[str, float],
        prediction: str = "velocity",
        max_condition_time: float = 0.01,
        pure_noise_share: float = 0.0,
    ) -> None:
        if not 0 <= pure_noise_share <= 1:
            raise UserError(f"pure_noise_share is {pure_noise_share}: give a share from 0 to 1")
        self.mixture, self.timesteps = mixture, timesteps
        self.loss_weights = dict(loss_weights)
        self.prediction = PREDICTIONS[prediction]
        self.max_condition_time = max_condition_time
        self.pure_noise_share = pure_noise_share

    def draw(
        self,
        batch_size: int,
        latent_shape: tuple[int, ...],
        generator: torch.Generator,
        noise_generator: torch.Generator | None = None,
    ) -> FlowDraw:
        """Draw roles and timesteps on the CPU for ``batch_size`` samples of shape (M, C, H, W), and noise where its generator is.

        ``noise_generator`` None = ``generator``.
        """
        source = noise_generator or generator
        roles = self.mixture(batch_size, generator)
        t = self.timesteps(batch_size, generator)
        condition_t = torch.rand(batch_size, generator=generator) * self.max_condition_time
        noise = torch.randn(batch_size, *latent_shape, generator=source, device=source.device)
        if self.pure_noise_share > 0:
            chosen = torch.rand(batch_size, generator=generator) < self.pure_noise_share
            t = torch.where(chosen & (roles == Role.CONDITION).any(dim=1), 1.0, t)
        return FlowDraw(roles, t, condition_t, noise)

    def __call__(
        self,
        network: Network,
        clean: Tensor,
        conditioning: Conditioning,
        draw: FlowDraw,
        mean_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> dict[str, Tensor]:
        """Return named scalar losses: "loss" (weighted sum) and "loss/<modality>" (mean over its supervised entries).

        A modality that no sample of the batch supervises contributes 0. ``mean_over_processes`` averages the (M,) counts
        of supervised entries, so that averaging gradients over processes equals one process with the whole batch.
        """
        path = linear_path(clean, draw.noise, draw.timesteps)
        output = network(path.x_t, path.timesteps, draw.roles, conditioning)
        error = (output.float() - self.prediction.target(path, clean).float()).square()
        per_entry = error.flatten(2).mean(-1) * self.prediction.weight(path.timesteps)  # (B, M)
        mask = supervised_mask(draw.roles)
        counts = mean_over_processes(mask.sum(0).to(per_entry.dtype))  # (M,)
        means = (per_entry * mask).sum(0) / torch.where(counts > 0, counts, 1)  # (M,)
        weights = means.new_tensor(list(self.loss_weights.values()))
        losses = {"loss": (weights * means).sum()}
        losses.update({f"loss/{name}": means[i] for i, name in enumerate(self.loss_weights)})
        return losses
