"""Images of a call <-> its latents, modality by modality, as many at a time as memory takes.

B samples, M modalities, C latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.modalities import Codec
from mmdit.modalities.codec import Output
from mmdit.pipelines.conditions import GivenImages
from mmdit.pipelines.limits import in_batches, refuse_decoded


def clean_latents(codec: LatentCodec, given: GivenImages, noise: Tensor) -> Tensor:
    """Latents of the given modalities, (B, M, C, h, w) like ``noise``; zeros elsewhere."""
    clean = torch.zeros_like(noise)
    for index, name in enumerate(codec.modalities):
        if name in given.images:
            rows, images = given.present[name], given.images[name]
            images = images if given.everywhere(name) else images[rows]
            moments = in_batches(codec.moments, images, images.shape[-2:].numel())
            clean[rows.to(clean.device), index] = codec.latents(moments.float(), name).to(clean)
    return clean


def completed(codec: LatentCodec, latents: Tensor, given: GivenImages) -> dict[str, Tensor]:
    """Images (B, 3, H, W) of every modality: those given as they are, the others decoded."""
    pixels = latents.shape[-2:].numel() * codec.downsampling**2
    images_of = {}
    for index, name in enumerate(codec.modalities):
        if given.everywhere(name):
            images_of[name] = given.images[name]
            continue
        decoded = in_batches(partial(codec.decode, modality=name), latents[:, index], pixels)
        images_of[name] = given.complete(name, refuse_decoded(decoded, name, codec.vae.dtype))
    return images_of


def decode(
    codec: LatentCodec,
    codecs: Mapping[str, Codec],
    latents: Tensor,
    given: GivenImages,
    inside: Tensor | None,
    output_type: str,
    size: tuple[int, int] | None = None,
) -> dict[str, Output]:
    """Outputs of every modality; given images stand as they are, or outside the region ``inside`` (H, W) bool.

    ``size``: height and width that they are resized to, where given ones have their ``originals``; None = as generated.
    """
    kept = given if inside is None else GivenImages()
    decoded = {}
    for name, image in completed(codec, latents, kept).items():
        if inside is not None:
            image = torch.where(inside.to(image.device), image, given.images[name].to(image))
        raw = codecs[name].decode(image)
        if size is not None:
            raw = np.stack([codecs[name].resize_output(each, *size) for each in raw])
        if name in given.originals:
            present = given.present[name].numpy()
            raw[present] = codecs[name].decode(given.originals[name][given.present[name]])
        decoded[name] = codecs[name].output(raw, output_type, latents.device)
    return decoded
