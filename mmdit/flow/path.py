"""The probability path. Time runs from t = 0, data, to t = 1, noise.

x_t = (1 - t) x_0 + t ε,   v = dx_t / dt = ε - x_0        (rectified flow, arXiv 2209.03003; SiT, arXiv 2401.08740)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.task import Role, role_timesteps


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


@dataclass(frozen=True)
class Given:
    """What a sampler is given and keeps.

    Args:
        clean: (B, M, C, H, W), latents of the given modalities; anything elsewhere.
        noise: (B, M, C, H, W), the samples' own noise. What is given is on the path to it, at every time.
        condition_time: t at which modalities with the role CONDITION are held.
        known: (B, M, H, W) bool, where a modality that is generated is given nevertheless; None = nowhere.
    """

    clean: Tensor
    noise: Tensor
    condition_time: float
    known: Tensor | None = None


def settle(latents: Tensor, given: Given, roles: Tensor) -> Tensor:
    """Latents at the end: put back the given ones exactly, whatever the last step left of them."""
    kept = expand(roles == Role.CONDITION, latents)
    if given.known is not None:
        kept = kept | given.known[:, :, None]
    return torch.where(kept, given.clean, latents)


def place(latents: Tensor, given: Given, roles: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """What a sampler shows the network at time t: latents (n B, M, C, H, W) and timesteps (n B, M).

    GENERATE: the state ``latents``; CONDITION: ``clean`` at ``condition_time`` on the path to its ``noise``, which stays
    the same; ABSENT: that noise. The known part of a generated modality is as noisy as the rest, at t, because the network
    is told one time per modality: x_t = (1 - t) x_0 + t ε, so x_0 itself at t = 0 (RePaint, arXiv 2201.09865, eq. 8a; with
    one ε for all steps, as in Blended Latent Diffusion, arXiv 2206.02779, the path of what is known stays straight).

    ``roles`` is (n B, M) for n copies of the batch: guidance asks under several at once.
    """
    branches = len(roles) // len(latents)
    latents, clean, noise = (x.repeat(branches, 1, 1, 1, 1) for x in (latents, given.clean, given.noise))
    times = torch.full((len(roles),), t, device=roles.device)
    timesteps = role_timesteps(roles, times, given.condition_time)  # (n B, M)
    held = linear_path(clean, noise, timesteps).x_t
    pinned = expand(roles != Role.GENERATE, latents)
    if given.known is not None:
        pinned = pinned | given.known.repeat(branches, 1, 1, 1)[:, :, None]
    return torch.where(pinned, held, latents), timesteps
