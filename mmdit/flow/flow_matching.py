"""What a training step minimises: the base of all objectives, and masked, per-modality-weighted flow matching.

Shapes: B batch, M modalities, C H W latent. Draw everything random first, for the whole global batch, with an
explicit generator; each process keeps its own rows. So a step depends on (seed, step) alone, not on the number of processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.path import PathSample, linear_path
from mmdit.flow.prediction import PREDICTIONS
from mmdit.flow.timesteps import TimestepSampler
from mmdit.task import Role, TaskMixture, role_timesteps, supervised_mask, without_missing


class NetworkOutput(Protocol):
    """What a network returns: ``sample`` (B, M, C, H, W), and whatever else it has."""

    @property
    def sample(self) -> Tensor:
        """(B, M, C, H, W), what the model predicts."""
        ...


class Network(Protocol):
    """The network as an objective sees it."""

    def __call__(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        roles: Tensor,
        conditioning: Conditioning,
        /,
        *,
        timesteps_next: Tensor | None = None,
    ) -> NetworkOutput:
        """Predict from x_t (B, M, C, H, W) at timesteps (B, M), and for a flow map the step to ``timesteps_next`` (B, M)."""
        ...


# (the path of the data, the data (B, M, C, H, W), roles (B, M)) -> both as a network is to learn them, x_t and timesteps the same
Teach = Callable[[PathSample, Tensor, Tensor], tuple[PathSample, Tensor]]


@dataclass(frozen=True)
class FlowDraw:
    """The random part of a step.

    Args:
        roles: (B, M).
        t, condition_t: (B,), of what is generated and of conditions.
        noise: (B, M, C, H, W), the far end of the path.
        posterior_noise: (B, M, C, H, W), with which the VAE's posterior is sampled; None = its mean.
        prompt_draw: (B,), uniform in [0, 1): whether a sample's prompt is dropped; None = none is.
        known: (B, M, H, W) bool, where a modality that is generated is given nevertheless; None = nowhere.
        next_t: (B,), the time that a sample's step leads to, of objectives that learn such steps; t itself = it takes none.
        progress: how much of the training is done, in [0, 1], for objectives with a schedule; not drawn.
    """

    roles: Tensor
    t: Tensor
    condition_t: Tensor
    noise: Tensor
    posterior_noise: Tensor | None = None
    prompt_draw: Tensor | None = None
    known: Tensor | None = None
    next_t: Tensor | None = None
    progress: float = 0.0

    @property
    def timesteps(self) -> Tensor:
        """Timestep of every modality, (B, M)."""
        return role_timesteps(self.roles, self.t, self.condition_t)

    @property
    def timesteps_next(self) -> Tensor:
        """Timestep of every modality after the step to ``next_t``, (B, M): what is given or absent stays at its own."""
        return role_timesteps(self.roles, self.t if self.next_t is None else self.next_t, self.condition_t)

    def shard(self, rank: int, world_size: int) -> FlowDraw:
        """Rows rank, rank + world_size, …: the order in which a distributed sampler deals samples out."""
        return self._map(lambda values: values[rank::world_size])

    def without_missing(self, present: Tensor) -> FlowDraw:
        """Make what the data lacks ABSENT; ``present`` is (B, M) bool."""
        return replace(self, roles=without_missing(self.roles, present.to(self.roles.device)))

    def to(self, device: torch.device | str) -> FlowDraw:
        """Move every tensor to ``device``."""
        return self._map(lambda values: values.to(device, non_blocking=True))

    def _map(self, function: Callable[[Tensor], Tensor]) -> FlowDraw:
        mapped: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            mapped[field.name] = function(value) if isinstance(value, Tensor) else value
        return FlowDraw(**mapped)


@dataclass(frozen=True)
class ObjectiveOutput:
    """Named scalar ``losses`` ("loss" is minimised), and the network's output for further use."""

    losses: dict[str, Tensor]
    network_output: Any


class Objective(ABC):
    """What a training step minimises. A new one is one subclass and one entry in ``mmdit.flow.objective.OBJECTIVES``.

    Attributes:
        needs_second_time: whether the network must take ``timesteps_next``.
        takes_derivative: whether it differentiates the network in its inputs.
        needs_null: whether a call is also given ``null``, the conditioning of "no prompt" of its B samples.
        scheduler: name in ``SCHEDULERS`` of what samples from the trained model.
        sampling_defaults: steps and guidance of the trained model's pipeline, as its ``defaults``; None = the pipeline's own.
    """

    needs_second_time: ClassVar[bool] = False
    takes_derivative: ClassVar[bool] = False
    needs_null: bool = False
    scheduler: ClassVar[str] = "euler"
    sampling_defaults: Mapping[str, Any] | None = None

    @abstractmethod
    def draw(
        self,
        batch_size: int,
        latent_shape: tuple[int, ...],
        generator: torch.Generator,
        noise_generator: torch.Generator | None = None,
    ) -> FlowDraw:
        """Draw all that is random about a step, for ``batch_size`` samples of shape (M, C, H, W).

        Roles and times on the CPU, noise where its generator is. ``noise_generator`` None = ``generator``.
        """

    @abstractmethod
    def __call__(
        self,
        network: Network,
        clean: Tensor,
        conditioning: Conditioning,
        draw: FlowDraw,
        mean_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts,
        teach: Teach | None = None,
    ) -> ObjectiveOutput:
        """Compute the losses on latents ``clean`` (B, M, C, H, W).

        ``mean_over_processes`` averages counts, so that averaging gradients over processes equals one process with the
        whole batch. ``teach`` puts what trained models predict in place of what the data say; None = the data.
        """


class FlowObjective(Objective):
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
        *,
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
        """Draw roles (B, M), times and prompt draws (B,), and two noises (B, M, C, H, W)."""
        # The order of the draws is part of a recipe: a seed gives the same steps in every version.
        source = noise_generator or generator
        roles = self.mixture(batch_size, generator)
        t = self.timesteps(batch_size, generator)
        condition_t = torch.rand(batch_size, generator=generator) * self.max_condition_time
        noise = torch.randn(batch_size, *latent_shape, generator=source, device=source.device)
        if self.pure_noise_share > 0:
            chosen = torch.rand(batch_size, generator=generator) < self.pure_noise_share
            t = torch.where(chosen & (roles == Role.CONDITION).any(dim=1), 1.0, t)
        posterior_noise = torch.randn(batch_size, *latent_shape, generator=source, device=source.device)
        prompt_draw = torch.rand(batch_size, generator=generator)
        return FlowDraw(roles, t, condition_t, noise, posterior_noise, prompt_draw)

    def __call__(
        self,
        network: Network,
        clean: Tensor,
        conditioning: Conditioning,
        draw: FlowDraw,
        mean_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts,
        teach: Teach | None = None,
    ) -> ObjectiveOutput:
        """Losses are "loss" (weighted sum) and "loss/<modality>", the mean over its supervised entries.

        A modality that no sample of the batch supervises contributes 0. What is known of a modality is at the sample's t
        like the rest of it, as ``flow.path.place`` shows it in sampling, and is in no loss.
        """
        path, clean = self.learned_path(clean, draw, teach)
        output = network(path.x_t, path.timesteps, draw.roles, conditioning)
        per_entry, has_unknown = self.entries(output, self.prediction.target(path, clean), path, draw)
        mask = supervised_mask(draw.roles) & has_unknown
        means = masked_means(per_entry, mask, mean_over_processes(mask.sum(0).to(per_entry.dtype)))  # (M,)
        losses = {"loss": self.weighted(means), **self.named("loss", means)}
        return ObjectiveOutput(losses, output)

    def learned_path(self, clean: Tensor, draw: FlowDraw, teach: Teach | None) -> tuple[PathSample, Tensor]:
        """The path at the draw's times and the data (B, M, C, H, W), as the network is to learn them."""
        path = linear_path(clean, draw.noise, draw.timesteps)
        return (path, clean) if teach is None else teach(path, clean, draw.roles)

    def entries(self, output: NetworkOutput, target: Tensor, path: PathSample, draw: FlowDraw) -> tuple[Tensor, Tensor]:
        """Weighted squared error of each modality of each sample, and whether not all of it is known, both (B, M)."""
        error = (output.sample.float() - target.float()).square()
        per_entry, has_unknown = _mean_where_unknown(error, draw.known)
        return per_entry * self.prediction.weight(path.timesteps), has_unknown

    def weighted(self, means: Tensor) -> Tensor:
        """Sum of the modalities' means (M,), by their weights."""
        return (means.new_tensor(list(self.loss_weights.values())) * means).sum()

    def named(self, kind: str, means: Tensor) -> dict[str, Tensor]:
        """The modalities' means (M,) as "kind/<modality>"."""
        return {f"{kind}/{name}": means[i] for i, name in enumerate(self.loss_weights)}


def masked_means(per_entry: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """Sum over the batch of the entries (B, M) in ``mask``, over ``counts`` (M,); 0 where nothing counts."""
    return (per_entry * mask).sum(0) / torch.where(counts > 0, counts, 1)


def _mean_where_unknown(error: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of the error (B, M, C, H, W) over the locations that are not known, and whether there are any, both (B, M)."""
    if known is None:
        return error.flatten(2).mean(-1), torch.ones(error.shape[:2], dtype=torch.bool, device=error.device)
    unknown = ~known  # (B, M, H, W)
    count = unknown.flatten(2).sum(-1)
    return (error.mean(2) * unknown).flatten(2).sum(-1) / count.clamp(min=1), count > 0
