"""Recipe "autoencoder": the VAE that all modalities share, on a dataset folder."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from mmdit.encoders.autoencoder_loss import AutoencoderObjective, make_autoencoder_objective
from mmdit.encoders.codec import LatentCodec
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import Batch
from mmdit.training.module import Losses, SteppedModule
from mmdit.training.optimizers import OptimizerConfig
from mmdit.training.recipes.data import data_module, image_data
from mmdit.training.run import Run


class AutoencoderModule(SteppedModule):
    """Trains the VAE on images of all modalities.

    The batch: an entry (B, 3, H, W) in [-1, 1] per modality, ``present`` (B, M) bool, ``id``.
    """

    def __init__(
        self,
        codec: LatentCodec,
        objective: AutoencoderObjective,
        *,
        optimizer: OptimizerConfig,
        seed: int,
        max_steps: int,
    ) -> None:
        super().__init__(codec.vae, optimizer=optimizer, seed=seed, max_steps=max_steps)
        self.codec, self.objective = codec, objective

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        images = torch.stack([batch[name] for name in self.codec.modalities], dim=1)  # (B, M, 3, H, W)
        present = batch["present"]
        modality_ids = torch.arange(images.shape[1], device=images.device).expand(present.shape)[present]
        return self.objective(self.codec, images[present], modality_ids, generator)


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
    objective = make_autoencoder_objective(modalities, settings.settings, "autoencoder.settings")
    module = AutoencoderModule(
        LatentCodec(vae, modalities),
        objective,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    return Run(module, data_module(config, train, val), lambda folder, _=None: vae.save_pretrained(folder), "vae", [])
