"""Representation alignment (REPA, arXiv 2410.06940, eq. 8), and the variants of its target and its distance.

B batch, T tokens, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

NORM_EPS = 1e-6
SMOOTH_L1_BETA = 0.05  # SRA's (arXiv 2505.02831)

# Name -> (projected, features), both (..., D) in fp32 -> distance (...), 0 where aligned.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # Differs from REPA's -cos by a constant, so that 0 means aligned.
    "cosine": lambda projected, features: 1 - F.cosine_similarity(projected, features, dim=-1),
    "smooth_l1": lambda projected, features: F.smooth_l1_loss(
        projected, features, beta=SMOOTH_L1_BETA, reduction="none"
    ).mean(-1),
}


def alignment_loss(
    projected: Tensor,
    features: Tensor,
    *,
    distance: str = "cosine",
    known: Tensor | None = None,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Tensor:
    """Return the mean distance of projected tokens from features over tokens; both are (B, T, D).

    Computes in fp32: the norm of half-precision features overflows.

    Args:
        projected, features: (B, T, D), or with ``known`` (B, T, G, D), each in G groups that are compared apart.
        distance: name in ``DISTANCES``.
        known: (B, G) bool, the groups that count; None = all do.
        mean_over_processes: averages the number of them, so that averaging gradients equals one process with all samples.
    """
    distances = DISTANCES[distance](projected.float(), features.float())  # (B, T) or (B, T, G)
    if known is None:
        return distances.mean()
    count = mean_over_processes(known.sum().to(distances.dtype))
    return (distances.mean(1) * known).sum() / torch.where(count > 0, count, 1)


def spatially_normalized(features: Tensor, gamma: float) -> Tensor:
    """(x - γ mean) / (std + ε) of features (B, T, ...), mean and std over the T tokens of an image (iREPA, arXiv 2512.10794).

    What all patches of an image share says what is shown, and hides where: γ takes this share of it away. In fp32.
    """
    features = features.float()
    mean, std = features.mean(1, keepdim=True), features.std(1, keepdim=True)
    return (features - gamma * mean) / (std + NORM_EPS)


def latent_tokens(latents: Tensor, patch_size: int) -> Tensor:
    """Latents (B, M, C, H, W) -> (B, T, M, C p p): what each token shows of each modality, in row-major order."""
    p = patch_size
    return rearrange(latents, "b m c (h p) (w q) -> b (h w) m (c p q)", p=p, q=p)
