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
from mmdit.modalities.resizing import antialiased
from mmdit.pipelines.conditions import GivenImages
from mmdit.pipelines.editing import Edit
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
    edit: Edit,
) -> dict[str, np.ndarray]:
    """Raw arrays (B, H, W[, channels]) of every modality at the model's size.

    Given images stand as they are; in an edit those that are kept, and all of them outside the region.
    """
    kept = edit.kept(given)
    raw_of = {}
    for name, image in completed(codec, latents, kept).items():
        if edit.region is not None and name not in kept.present:
            image = torch.where(edit.region.inside.to(image.device), image, given.images[name].to(image))
        raw_of[name] = codecs[name].decode(image)
    return raw_of


def at_size(
    raw_of: Mapping[str, np.ndarray],
    codecs: Mapping[str, Codec],
    given: GivenImages,
    edit: Edit,
    size: tuple[int, int],
) -> dict[str, np.ndarray]:
    """The same at ``size``, (height, width) of the ``originals``, which stand where ``decode`` leaves given images."""
    kept = edit.kept(given)
    resized = {}
    for name, raw in raw_of.items():
        raw = np.stack([codecs[name].resize_output(each, *size) for each in raw])
        changed = None if name in kept.present else edit.region
        if name in given.originals and (changed is not None or name in kept.present):
            present = given.present[name].numpy()
            original = codecs[name].decode(given.originals[name][given.present[name]])
            if changed is not None:
                inside = changed.given.numpy().reshape(*changed.given_size, *[1] * (raw.ndim - 3))
                original = np.where(inside, raw[present], original)
            raw[present] = original
        resized[name] = raw
    return resized


def spread_at_size(spread: Mapping[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Maps of uncertainty (N, H, W) at ``size``, (height, width)."""
    return {name: np.stack([antialiased(each, *size) for each in maps]) for name, maps in spread.items()}


def as_outputs(
    raw_of: Mapping[str, np.ndarray], codecs: Mapping[str, Codec], output_type: str, device: torch.device
) -> dict[str, Output]:
    """Raw arrays as the caller wants them."""
    return {name: codecs[name].output(raw, output_type, device) for name, raw in raw_of.items()}
