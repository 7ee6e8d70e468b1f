"""Representation alignment (REPA, arXiv 2410.06940, eq. 8)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Return the mean of 1 - cos(projected, features) over tokens; both are (B, T, D).

    Computes in fp32: the norm of half-precision features overflows. Differs from REPA's -cos (arXiv 2410.06940) by a
    constant, so that 0 means aligned.
    """
    return (1 - F.cosine_similarity(projected.float(), features.float(), dim=-1)).mean()
