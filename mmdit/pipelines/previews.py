"""What a call under way will look like, for its callbacks.

B samples, M modalities, C latent channels, h w latent size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.pipelines.conditions import GivenImages
from mmdit.pipelines.images import completed

if TYPE_CHECKING:
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


def estimated_clean(before: Tensor, latents: Tensor, sigma_before: float, sigma: float) -> Tensor:
    """Where a path leads, from two points of it: x_0 = x_t - t v, v = (x_s - x_t) / (s - t).

    Exact for Euler's method, whose steps are straight; sharper than ``latents`` for every other one.

    Args:
        before, latents: (B, M, C, h, w) at the times ``sigma_before`` and ``sigma``, which differ.
    """
    velocity = (before - latents) / (sigma_before - sigma)
    return latents - sigma * velocity


def decode_latents(pipe: MultimodalDiTPipeline, latents: Tensor) -> dict[str, np.ndarray]:
    """Decode latents (B, M, C, h, w), as callbacks have them, to raw arrays by modality, B of each."""
    codec = LatentCodec(pipe.vae, pipe.modalities, device=latents.device)
    images = completed(codec, latents, GivenImages())
    return {name: pipe.codecs[name].decode(image) for name, image in images.items()}
