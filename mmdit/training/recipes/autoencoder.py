"""Recipe "autoencoder": the VAE that all modalities share, on a dataset folder."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from mmdit.encoders.autoencoder_loss import AutoencoderObjective
from mmdit.encoders.codec import LatentCodec
from mmdit.training.config import TrainingConfig
from mmdit.training.module import AutoencoderModule
from mmdit.training.recipes.data import data_module, image_data
from mmdit.training.run import Run


def autoencoder_run(config: TrainingConfig) -> Run:
    """Recipe "autoencoder": the VAE that all modalities share, on a dataset folder."""
    train, val, modalities = image_data(config)
    settings = config.autoencoder
    levels = len(settings.block_out_channels)
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(
        in_channels=3 * settings.unshuffle**2,
        out_channels=3 * settings.unshuffle**2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(settings.block_out_channels),
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        mid_block_add_attention=settings.mid_attention,
        scaling_factor=1.0,
    )
    with torch.no_grad():  # a narrow posterior to begin with: noise of std 1 would hide the image from the decoder
        vae.quant_conv.weight[settings.latent_channels :] *= 0.1
        vae.quant_conv.bias[settings.latent_channels :] = -4.0
    objective = AutoencoderObjective(modalities, **settings.settings)  # type: ignore[arg-type]
    module = AutoencoderModule(
        LatentCodec(vae, modalities),
        objective,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    return Run(module, data_module(config, train, val), lambda folder, _=None: vae.save_pretrained(folder), "vae", [])
