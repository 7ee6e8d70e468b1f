"""The VAE's own features as an alignment target: no other network is needed.

VAE-REPA / SRA 2 (arXiv 2601.17830) aligns with what the frozen VAE makes of the image. Its stored latents are one reading
of that (``flow.alignment.latent_tokens``); this is the other, one layer earlier and wider.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError
from mmdit.modalities import IMAGE, MODALITIES


class VAETeacher(nn.Module):
    """The last hidden layer of a frozen VAE's encoder, before it is brought down to latent channels.

    Args:
        vae: diffusers' ``AutoencoderKL``.
        patch_size: p, latent cells on the side of a token.

    Raises:
        UserError: a VAE of another class, whose layers are not known.
    """

    name = "vae"

    def __init__(self, vae: AutoencoderKL, patch_size: int) -> None:
        super().__init__()
        if not isinstance(getattr(getattr(vae, "encoder", None), "mid_block", None), nn.Module):
            raise UserError(
                f"alignment.teacher 'vae' reads an AutoencoderKL, the VAE is a {type(vae).__name__}: give 'latents'"
            )
        self.vae, self.patch_size = vae.eval().requires_grad_(False), patch_size
        self.codec = LatentCodec(vae, {IMAGE: MODALITIES[IMAGE]})

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [-1, 1] -> (B, T, D p p) in row-major order, D the width of that layer."""
        found: list[Tensor] = []
        hook = self.vae.encoder.mid_block.register_forward_hook(lambda layer, inputs, output: found.append(output))
        try:
            self.codec.moments(images)
        finally:
            hook.remove()
        patches = F.pixel_unshuffle(found[0], self.patch_size)  # (B, D p p, h / p, w / p)
        return patches.flatten(2).transpose(1, 2)
