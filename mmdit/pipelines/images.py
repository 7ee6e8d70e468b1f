"""Images of a call <-> its latents, modality by modality, as many at a time as memory takes.

B samples, M modalities, C latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.modalities import Codec
from mmdit.modalities.codec import Output
from mmdit.pipelines.limits import in_batches, refuse_decoded


def clean_latents(codec: LatentCodec, given: Mapping[str, Tensor], noise: Tensor) -> Tensor:
    """Latents of the given modalities, (B, M, C, h, w) like ``noise``; zeros elsewhere."""
    clean = torch.zeros_like(noise)
    for index, name in enumerate(codec.modalities):
        if name in given:
            moments = in_batches(codec.moments, given[name], given[name].shape[-2:].numel())
            clean[:, index] = codec.latents(moments.float(), name).to(clean)
    return clean


def completed(codec: LatentCodec, latents: Tensor, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Images (B, 3, H, W) of every modality: those given as they are, the others decoded."""
    pixels = latents.shape[-2:].numel() * codec.downsampling**2
    images_of = {}
    for index, name in enumerate(codec.modalities):
        if name in images:
            images_of[name] = images[name]
            continue
        decoded = in_batches(partial(codec.decode, modality=name), latents[:, index], pixels)
        images_of[name] = refuse_decoded(decoded, name, codec.vae.dtype)
    return images_of


def decode(
    codec: LatentCodec,
    codecs: Mapping[str, Codec],
    latents: Tensor,
    images: Mapping[str, Tensor],
    inside: Tensor | None,
    output_type: str,
) -> dict[str, Output]:
    """Outputs of every modality; ``images`` stand as they are, or outside the region ``inside`` (H, W) bool."""
    kept = images if inside is None else {}
    decoded = {}
    for name, image in completed(codec, latents, kept).items():
        if inside is not None:
            image = torch.where(inside.to(image.device), image, images[name].to(image))
        decoded[name] = codecs[name].output(codecs[name].decode(image), output_type, latents.device)
    return decoded
