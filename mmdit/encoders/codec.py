"""Pixels -> moments -> whitened latents -> pixels, around one diffusers ``AutoencoderKL`` for all modalities.

Shapes: B samples, M modalities, C latent channels, h = H / downsampling, w = W / downsampling.
Moments are what is stored: the posterior's mean and log-variance, (…, 2C, h, w). Latents are what the transformer sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from mmdit.errors import UserError
from mmdit.modalities.modality import Modality

# AutoencoderKL's own limits; at a log-variance of -30 the noise is negligible.
LOGVAR_RANGE = (-30.0, 20.0)


class LatentCodec:
    """Encodes and decodes 3-channel images of every modality with one VAE.

    A small VAE works behind a k x pixel-unshuffle, which spares it the two expensive full-resolution levels; k follows
    from ``vae.config.in_channels == 3 k^2`` (k = 1 for Stable Diffusion's), so the VAE's folder says everything.

    Args:
        vae: the autoencoder, in any dtype and on any device; inputs are moved to it. ``AutoencoderKL``, or in Python another
            class of diffusers for images, such as ``AutoencoderTiny``; one without ``shift_factor`` shifts by nothing.
        modalities: name -> record, in the order of the modality axis. A record with ``latents_mean``/``latents_std``
            whitens its latents, (z - mean) / std; one without uses (z - shift_factor) * scaling_factor of the VAE.

        device: where the VAE runs; None = where it is. A pipeline that offloads its VAE keeps it elsewhere.

    Raises:
        UserError: a VAE whose channels are not 3 k^2, or statistics whose length is not the VAE's latent channels.
    """

    def __init__(
        self, vae: AutoencoderKL, modalities: Mapping[str, Modality], device: torch.device | str | None = None
    ) -> None:
        self.vae, self._device = vae, device
        self.modalities = dict(modalities)
        in_channels = int(vae.config.in_channels)
        self.unshuffle = isqrt(in_channels // 3)
        if 3 * self.unshuffle**2 != in_channels or int(vae.config.out_channels) != in_channels:
            raise UserError(
                f"the VAE has {in_channels} input and {vae.config.out_channels} output channels: "
                "both must be 3, or 3 k^2 for a k x pixel-unshuffle"
            )
        self.latent_channels = int(vae.config.latent_channels)
        self.downsampling = self.unshuffle * 2 ** (_num_levels(vae) - 1)
        statistics = [self._statistics(modality) for modality in self.modalities.values()]
        self._mean = torch.stack([mean for mean, _ in statistics])  # (M, C, 1, 1)
        self._std = torch.stack([std for _, std in statistics])  # (M, C, 1, 1)
        self._row = {name: i for i, name in enumerate(self.modalities)}

    def _statistics(self, modality: Modality) -> tuple[Tensor, Tensor]:
        if modality.latents_mean is not None and modality.latents_std is not None:
            mean, std = torch.tensor(modality.latents_mean), torch.tensor(modality.latents_std)
            if len(mean) != self.latent_channels or len(std) != self.latent_channels or not (std > 0).all():
                raise UserError(
                    f"modality {modality.name!r}: latents_mean and latents_std must be {self.latent_channels} numbers "
                    f"each, std positive; they are {modality.latents_mean} and {modality.latents_std}"
                )
        else:
            shift, scale = (self.vae.config.get(name) for name in ("shift_factor", "scaling_factor"))
            mean = torch.full((self.latent_channels,), float(shift or 0.0))
            std = torch.full((self.latent_channels,), 1.0 / float(1.0 if scale is None else scale))
        return mean[:, None, None], std[:, None, None]

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w). Raises UserError if the image size is not a multiple of the downsampling."""
        if height % self.downsampling or width % self.downsampling:
            raise UserError(
                f"image size {height} x {width}: both must be multiples of {self.downsampling}, the VAE's downsampling"
            )
        return height // self.downsampling, width // self.downsampling

    def moments(self, images: Tensor) -> Tensor:
        """Encode (B, 3, H, W) in [-1, 1] -> (B, 2C, h, w): the posterior's mean and clamped log-variance."""
        self.latent_size(*images.shape[-2:])
        images = images.to(self._device or self.vae.device, self.vae.dtype)
        encoded = self.vae.encode(F.pixel_unshuffle(images, self.unshuffle))
        if not hasattr(encoded, "latent_dist"):  # AutoencoderTiny's latents are no distribution: all at their mean
            return torch.cat([encoded.latents, torch.full_like(encoded.latents, LOGVAR_RANGE[0])], dim=1)
        posterior = encoded.latent_dist
        return torch.cat([posterior.mean, posterior.logvar.clamp(*LOGVAR_RANGE)], dim=1)

    def sample(self, moments: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draw z (…, C, h, w) from the posterior ``moments`` (…, 2C, h, w); its mean with neither generator nor ``noise``."""
        mean, logvar = moments.chunk(2, dim=-3)
        if noise is None:
            if generator is None:
                return mean
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=generator.device)
        return mean + noise.to(mean.device) * (logvar / 2).exp()

    def latents(self, moments: Tensor, modality: str, generator: torch.Generator | None = None) -> Tensor:
        """Moments (B, 2C, h, w) of one modality -> whitened latents (B, C, h, w); the mean without a generator."""
        row = self._row[modality]
        return (self.sample(moments, generator) - self._mean[row].to(moments)) / self._std[row].to(moments)

    def decode_raw(self, z: Tensor) -> Tensor:
        """Decode unwhitened z (B, C, h, w) -> images (B, 3, H, W), not clipped."""
        z = z.to(self._device or self.vae.device, self.vae.dtype)
        return F.pixel_shuffle(self.vae.decode(z, return_dict=False)[0], self.unshuffle)

    def decode(self, latents: Tensor, modality: str) -> Tensor:
        """Whitened latents (B, C, h, w) of one modality -> images (B, 3, H, W), not clipped."""
        row = self._row[modality]
        return self.decode_raw(latents * self._std[row].to(latents) + self._mean[row].to(latents))

    def encode_all(self, images: Tensor) -> Tensor:
        """Encode (B, M, 3, H, W) -> moments (B, M, 2C, h, w)."""
        self._check_modalities(images)
        return self.moments(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def latents_all(
        self, moments: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Moments (B, M, 2C, h, w) -> whitened latents (B, M, C, h, w); the posterior is drawn as by ``sample``."""
        self._check_modalities(moments)
        return self.whiten_all(self.sample(moments, generator, noise))

    def whiten_all(self, z: Tensor) -> Tensor:
        """Unwhitened z (B, M, C, h, w) -> latents (B, M, C, h, w)."""
        self._check_modalities(z)
        return (z - self._mean.to(z)) / self._std.to(z)

    def unwhiten_all(self, latents: Tensor) -> Tensor:
        """Latents (B, M, C, h, w) -> unwhitened z of the same shape, the inverse of ``whiten_all``."""
        self._check_modalities(latents)
        return latents * self._std.to(latents) + self._mean.to(latents)

    def decode_all(self, latents: Tensor) -> Tensor:
        """Decode whitened latents (B, M, C, h, w) -> images (B, M, 3, H, W), not clipped."""
        return self.decode_raw(self.unwhiten_all(latents).flatten(0, 1)).unflatten(0, latents.shape[:2])

    def _check_modalities(self, values: Tensor) -> None:
        if values.ndim != 5 or values.shape[1] != len(self.modalities):
            raise UserError(
                f"expected (B, {len(self.modalities)}, …) for modalities {', '.join(self.modalities)}, "
                f"got {tuple(values.shape)}"
            )


def _num_levels(vae: Any) -> int:
    """Resolutions of the encoder, by the name that the VAE's class has for them."""
    for name in ("block_out_channels", "encoder_block_out_channels", "down_block_out_channels"):
        if (channels := vae.config.get(name)) is not None:
            return len(channels)
    raise UserError(f"the VAE is a {type(vae).__name__}, whose downsampling is not known: give an AutoencoderKL")
