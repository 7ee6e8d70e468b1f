"""Representation alignment (REPA, arXiv 2410.06940, eq. 8)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Mean of 1 - cos(projected, features) over tokens, (B, T, D) both; in fp32, for the norm of half-precision
    features overflows. Differs from REPA's -cos by a constant, so that 0 means aligned."""
    return (1 - F.cosine_similarity(projected.float(), features.float(), dim=-1)).mean()
