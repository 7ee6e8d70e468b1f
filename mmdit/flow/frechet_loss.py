"""The Fréchet distance of features as a loss: of what a network makes from those of the data (FD-loss, arXiv 2604.28190).

A distance of Gaussians needs thousands of samples, a step has tens. So the moments are those of all recent samples, and the
gradient is that of the batch: of the distance, if the whole population moved as the batch does.

N samples, D width of their features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import UserError

# Of the largest eigenvalue: the square root has no derivative at 0, and features of fewer samples than D have such directions.
LEAST_EIGENVALUE = 1e-10


def _wide(features: Tensor) -> Tensor:
    """float64; on the CPU where they are on one of Apple's GPUs, which have none."""
    return (features.cpu() if features.device.type == "mps" else features).double()


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and second moment E[x xᵀ] (D, D) of features, float64."""

    mean: Tensor
    second: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features (N, D)."""
        features = _wide(features)
        return cls(features.mean(0), features.mT @ features / len(features))

    def to(self, device: torch.device) -> Moments:
        return Moments(self.mean.to(device), self.second.to(device))

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by N."""
        return self.second - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Reference:
    """What moments are compared with: mean (D,), covariance (D, D) and its root (D, D), float64."""

    mean: Tensor
    covariance: Tensor
    root: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, features: Tensor) -> Reference:
        """Of features (N, D)."""
        moments = Moments.of(features)
        values, vectors = torch.linalg.eigh(moments.covariance)
        return cls(moments.mean, moments.covariance, vectors * values.clamp_min(0).sqrt() @ vectors.mT)

    def to(self, device: torch.device) -> Reference:
        return Reference(self.mean.to(device), self.covariance.to(device), self.root.to(device))


def frechet_distance(moments: Moments, reference: Reference) -> Tensor:
    """|m - m'|² + tr(S + S' - 2 (S'^½ S S'^½)^½): a scalar, float64, with a gradient to ``moments``; NaN if these are not finite.

    The same as ``mmdit.metrics.frechet.frechet_distance``, which has no gradient and is exact for covariances of any rank.
    """
    product = reference.root @ moments.covariance @ reference.root
    if not torch.isfinite(product).all():  # what a step does about that is the caller's affair; eigenvalues would raise
        return product.sum() * torch.nan
    values = torch.linalg.eigvalsh((product + product.mT) / 2)
    least = LEAST_EIGENVALUE * float(values.detach().amax().clamp_min(torch.finfo(values.dtype).tiny))
    traces = moments.covariance.diagonal().sum() + reference.covariance.diagonal().sum()
    return (moments.mean - reference.mean).square().sum() + traces - 2 * values.clamp_min(least).sqrt().sum()


class RunningMoments:
    """Moments of all recent features of a network in training.

    Args:
        decay: β, what stays of them in a step; until 1 / (1 - β) steps' samples have come, all weigh the same.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.count = 0.0  # samples that have come, to each process on average
        self.moments: Moments | None = None

    def add(
        self, features: Tensor, mean_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts
    ) -> Moments | None:
        """Take in features (N, D), N may be 0, and return the moments of all; their gradient is that of the batch's own.

        ``mean_over_processes`` averages over the processes that share the batch, so that averaging gradients over them equals one
        process with the whole of it. None = no features have come yet.
        """
        features = _wide(features)
        sums = features.sum(0), features.mT @ features
        if self.moments is not None:
            if self.moments.mean.shape != features.shape[1:]:
                raise UserError(
                    f"frechet.teacher gives {features.shape[1]} features, and that of the checkpoint gave "
                    f"{len(self.moments.mean)}: give the one that the run began with"
                )
            self.moments = self.moments.to(features.device)  # those of a checkpoint are on the CPU
        with torch.no_grad():
            n, first, second = (
                mean_over_processes(each.detach().clone())
                for each in (features.new_tensor(float(len(features))), *sums)
            )
            num = float(n)
            if num > 0:
                self.count += num
                kept = 0.0 if self.moments is None else min(self.decay, 1 - num / self.count)
                old = Moments(first / num, second / num) if self.moments is None else self.moments
                self.moments = Moments(
                    kept * old.mean + (1 - kept) * first / num, kept * old.second + (1 - kept) * second / num
                )
        if self.moments is None:
            return None
        own = ((each - each.detach()) / (num or 1.0) for each in sums)  # zeros
        return Moments(*(now + zero for now, zero in zip((self.moments.mean, self.moments.second), own, strict=True)))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        moments = None if self.moments is None else self.moments.to(torch.device("cpu"))
        return {"count": self.count, "moments": None if moments is None else (moments.mean, moments.second)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.count = float(state["count"])
        self.moments = None if state["moments"] is None else Moments(*state["moments"])
