"""The probability path, and the one statement of which way time runs: t = 0 is data, t = 1 is noise.

x_t = (1 - t) x_0 + t ε,   v = dx_t / dt = ε - x_0        (rectified flow, arXiv 2209.03003; SiT, arXiv 2401.08740)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PathSample:
    """A point of the path: ``x_t`` and ``velocity`` are (B, M, C, H, W), ``timesteps`` is (B, M)."""

    x_t: Tensor
    velocity: Tensor
    timesteps: Tensor


def expand(t: Tensor, like: Tensor) -> Tensor:
    """View t (B, M) so that it broadcasts over ``like`` (B, M, ...)."""
    return t.view(*t.shape, *([1] * (like.ndim - t.ndim)))


def linear_path(clean: Tensor, noise: Tensor, timesteps: Tensor) -> PathSample:
    """Sample the path between ``clean`` (t = 0) and ``noise`` (t = 1), each modality at its own timestep."""
    t = expand(timesteps, clean)
    return PathSample((1 - t) * clean + t * noise, noise - clean, timesteps)
