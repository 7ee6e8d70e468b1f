"""A task is a role per modality.

Shapes: B batch, M modalities. ``roles`` is (B, M), int64. From roles come, by pure functions, the timesteps, the loss
mask and the index of the role embedding; nothing about a sample's task depends on its position in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name


class Role(IntEnum):
    """What a modality does in one sample.

    =============  ==============================  ====================  ====================
    role           input                           timestep              in the velocity loss
    =============  ==============================  ====================  ====================
    GENERATE       noised                          the sample's t        yes
    CONDITION      (almost) clean                  t_c, close to 0       no
    UNSUPERVISED   noised                          the sample's t        no
    ABSENT         pure noise, whatever the data   1                     no
    =============  ==============================  ====================  ====================
    """

    GENERATE = 0
    CONDITION = 1
    UNSUPERVISED = 2
    ABSENT = 3


def role_timesteps(roles: Tensor, timesteps: Tensor, condition_timesteps: Tensor | float) -> Tensor:
    """Timestep of every modality, (B, M), from the sample's ``timesteps`` (B,) and ``condition_timesteps`` (B,) or scalar."""
    condition = torch.as_tensor(condition_timesteps, dtype=timesteps.dtype, device=timesteps.device)
    t = timesteps[:, None].expand(roles.shape)
    t = torch.where(roles == Role.CONDITION, condition.expand(timesteps.shape)[:, None], t)
    return torch.where(roles == Role.ABSENT, torch.ones_like(t), t)


def supervised_mask(roles: Tensor) -> Tensor:
    """True where a modality is in the velocity loss, (B, M) bool."""
    return roles == Role.GENERATE


def embedding_roles(roles: Tensor) -> Tensor:
    """Roles as the network may see them, (B, M): UNSUPERVISED looks like GENERATE: its input is the same.

    Only the loss tells the two apart; a separate embedding would train weights that sampling never uses.
    """
    # int: torch.compile takes the comparison of a tensor with a member of an enum for False.
    return torch.where(roles == int(Role.UNSUPERVISED), torch.full_like(roles, int(Role.GENERATE)), roles)


def _one_given(num_rows: int, num_modalities: int, generator: torch.Generator) -> Tensor:
    """One random modality of each row, (N, M) bool."""
    given = torch.randint(num_modalities, (num_rows,), generator=generator)
    return given[:, None] == torch.arange(num_modalities)


def _subset_given(num_rows: int, num_modalities: int, generator: torch.Generator) -> Tensor:
    """A non-empty proper subset of each row, each equally likely, (N, M) bool: the bits of a number in 1 … 2^M - 2."""
    subsets = torch.randint(1, 2**num_modalities - 1, (num_rows, 1), generator=generator)
    return (subsets >> torch.arange(num_modalities)) & 1 == 1


@dataclass(frozen=True)
class Task:
    """A rule that deals roles to rows of the batch. All fields None = every modality is generated.

    Args:
        given: the modality that is the CONDITION.
        supervised: the only modality in the loss; the others are UNSUPERVISED.
        draw_given: (N, M, generator) -> (N, M) bool, the conditions of each row where they are drawn.
    """

    given: str | None = None
    supervised: str | None = None
    draw_given: Callable[[int, int, torch.Generator], Tensor] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Modalities that the model must have."""
        return tuple(name for name in (self.given, self.supervised) if name is not None)

    def __call__(self, num_rows: int, modalities: Sequence[str], generator: torch.Generator) -> Tensor:
        """Deal roles (N, M) to N rows."""
        roles = torch.full((num_rows, len(modalities)), int(Role.GENERATE))
        if self.supervised is not None:
            roles.fill_(int(Role.UNSUPERVISED))
            roles[:, modalities.index(self.supervised)] = Role.GENERATE
        if self.given is not None:
            roles[:, modalities.index(self.given)] = Role.CONDITION
        if self.draw_given is not None:
            roles[self.draw_given(num_rows, len(modalities), generator)] = Role.CONDITION
        return roles


TASKS: dict[str, Task] = {
    "joint": Task(),
    "rgb_only": Task(supervised="rgb"),
    "rgb_given": Task(given="rgb"),
    "one_given": Task(draw_given=_one_given),
    "subset_given": Task(draw_given=_subset_given),
}


@dataclass(frozen=True)
class Mixture:
    """Tasks with weights, and what is changed about the roles they deal.

    Args:
        weights: weight per name in ``TASKS``.
        absent_share: share of the samples in which a random non-empty proper subset of the modalities is ABSENT (what
            guidance on a condition and partial data need).
        drop_loss: take random (sample, modality) entries out of the loss, but in rows of a task with a single
            supervised modality (MMGen, arXiv 2503.20644).
        protected: the modality that ``drop_loss`` never takes out.
    """

    weights: Mapping[str, float]
    absent_share: float = 0.0
    drop_loss: bool = False
    protected: str | None = "rgb"


MIXTURES: dict[str, Mixture] = {
    "mmgen": Mixture({"rgb_only": 0.5, "joint": 0.25, "one_given": 0.25}, drop_loss=True),
    "any_to_any": Mixture({"joint": 0.4, "rgb_given": 0.3, "subset_given": 0.3}, absent_share=0.1),
    "understanding": Mixture({"rgb_given": 1.0}),
}


class TaskMixture:
    """Draws roles for a batch: exact task counts, a random permutation, an explicit generator.

    Args:
        mixture: a name in ``MIXTURES``, a ``Mixture``, or weights per name in ``TASKS``.
        modalities: the model's modalities, in order.
        absent_share, drop_loss: in place of the mixture's own; None = its own.

    Raises:
        UserError: an unknown mixture or task, a negative weight, or weights that are all zero; a task about a modality
            that the model lacks.
    """

    def __init__(
        self,
        mixture: str | Mixture | Mapping[str, float],
        modalities: Sequence[str],
        absent_share: float | None = None,
        drop_loss: bool | None = None,
    ) -> None:
        if isinstance(mixture, str):
            if mixture not in MIXTURES:
                raise unknown_name("task mixture", mixture, MIXTURES)
            mixture = MIXTURES[mixture]
        elif not isinstance(mixture, Mixture):
            mixture = Mixture(mixture)
        for name, weight in mixture.weights.items():
            if name not in TASKS:
                raise unknown_name("task", name, TASKS)
            if not 0 <= weight < math.inf:
                raise UserError(f"weight of task {name!r} is {weight}: give a number >= 0")
            for needed in TASKS[name].needs:
                if needed not in modalities:
                    raise UserError(
                        f"task {name!r} needs the modality {needed!r}; the model has {', '.join(modalities)}"
                    )
        total = float(sum(mixture.weights.values()))
        if total <= 0:
            raise UserError(f"weights of the task mixture sum to {total}: give at least one positive weight")
        self.weights = {name: weight / total for name, weight in mixture.weights.items() if weight > 0}
        self.modalities = tuple(modalities)
        self.absent_share = mixture.absent_share if absent_share is None else absent_share
        self.drop_loss = mixture.drop_loss if drop_loss is None else drop_loss
        self.protected = mixture.protected
        if not 0 <= self.absent_share <= 1:
            raise UserError(f"absent_share is {self.absent_share}: give a share from 0 to 1")
        if len(self.modalities) == 1:  # no proper subset exists
            self.weights, self.absent_share = {"joint": 1.0}, 0.0

    def __call__(self, batch_size: int, generator: torch.Generator, present: Tensor | None = None) -> Tensor:
        """Draw roles (B, M) on the CPU. ``present`` (B, M) bool is False where the data lacks a modality."""
        counts = self._counts(batch_size, generator)
        tasks = [TASKS[name] for name in counts]
        rows = [task(count, self.modalities, generator) for task, count in zip(tasks, counts.values(), strict=True)]
        if self.drop_loss:
            rows = [r if task.supervised else self._drop(r, generator) for task, r in zip(tasks, rows, strict=True)]
        roles = torch.cat(rows)[torch.randperm(batch_size, generator=generator)]
        roles = self._make_absent(roles, generator)
        return roles if present is None else without_missing(roles, present.cpu())

    def _counts(self, batch_size: int, generator: torch.Generator) -> dict[str, int]:
        """Systematic sampling: each count is weight x batch rounded up or down, right on average, exact where whole."""
        edges = torch.tensor(list(self.weights.values()), dtype=torch.float64).cumsum(0) * batch_size
        edges[-1] = batch_size
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        ends = (edges.round(decimals=9) + offset).floor().long()
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        return {task: int(count) for task, count in zip(self.weights, counts, strict=True)}

    def _drop(self, roles: Tensor, generator: torch.Generator) -> Tensor:
        num_dropped = int(torch.randint(max(roles.numel(), 1), (), generator=generator))
        dropped = torch.randperm(roles.numel(), generator=generator)[:num_dropped]
        mask = torch.zeros(roles.numel(), dtype=torch.bool)
        mask[dropped] = True
        mask = mask.view_as(roles) & (roles == Role.GENERATE)
        mask[:, [name == self.protected for name in self.modalities]] = False
        return torch.where(mask, int(Role.UNSUPERVISED), roles)

    def _make_absent(self, roles: Tensor, generator: torch.Generator) -> Tensor:
        if self.absent_share == 0:
            return roles
        chosen = torch.rand(len(roles), 1, generator=generator) < self.absent_share
        subset = _subset_given(len(roles), len(self.modalities), generator)
        return without_missing(roles, ~(chosen & subset))


def without_missing(roles: Tensor, present: Tensor) -> Tensor:
    """Make modalities ABSENT where ``present`` (B, M) is False; a row that loses all it generates generates its conditions.

    A row that generated nothing before, for the mixture dropped its losses, stays as it is.
    """
    generates = (roles == Role.GENERATE).any(dim=1, keepdim=True)
    roles = torch.where(present, roles, int(Role.ABSENT))
    lost = generates & ~(roles == Role.GENERATE).any(dim=1, keepdim=True)
    return torch.where(lost & (roles != Role.ABSENT), int(Role.GENERATE), roles)
