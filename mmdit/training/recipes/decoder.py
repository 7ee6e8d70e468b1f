"""Recipe "decoder": that of a model's VAE, trained on alone, as sd-vae-ft-mse's was, and on what the model predicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdit.encoders.autoencoder_loss import AutoencoderObjective, make_autoencoder_objective
from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.precompute import DECODER_PARTS
from mmdit.modalities import IMAGE
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import Batch
from mmdit.training.module import Losses, SteppedModule
from mmdit.training.optimizers import OptimizerConfig
from mmdit.training.recipes.data import data_module, images_as
from mmdit.training.recipes.in_place import in_place, pretrained_pipeline
from mmdit.training.run import Run


class DecoderModule(SteppedModule):
    """Trains the decoder of a pipeline's VAE where it is.

    The batch: an entry (B, 3, H, W) in [-1, 1] per modality of the pipeline, ``present`` (B, M) bool, ``id``.

    Args:
        pipe: what predicts; its encoder and its transformer stay as they are.
        objective: the loss.
        predicted_share: chance of a sample to have its other modalities predicted from its RGB.
        optimizer, seed, max_steps: as in ``SteppedModule``.
    """

    def __init__(
        self,
        pipe: MultimodalDiTPipeline,
        objective: AutoencoderObjective,
        predicted_share: float,
        *,
        optimizer: OptimizerConfig,
        seed: int,
        max_steps: int,
    ) -> None:
        parts = {name: part for name in DECODER_PARTS if (part := getattr(pipe.vae, name, None)) is not None}
        super().__init__(nn.ModuleDict(parts).train(), optimizer=optimizer, seed=seed, max_steps=max_steps)
        self.objective, self.predicted_share = objective, predicted_share
        self.codec = LatentCodec(pipe.vae, pipe.modalities)
        self._frozen = (pipe,)  # no submodule: checkpoints and the optimizer see the decoder alone
        pipe.set_progress_bar_config(disable=True)

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        images = torch.stack([batch[name] for name in self.codec.modalities], dim=1)  # (B, M, 3, H, W)
        present = batch["present"]
        modality_ids = torch.arange(images.shape[1], device=images.device).expand(present.shape)[present]
        output = self.codec.decode_raw(self.latents(images, present, generator)[present]).float()
        return self.objective.reconstruction(output, images[present].to(output), modality_ids)

    @torch.no_grad()
    def latents(self, images: Tensor, present: Tensor, generator: torch.Generator) -> Tensor:
        """What is decoded, (B, M, C, h, w), not whitened: of ``images`` (B, M, 3, H, W), or as they are predicted from RGB."""
        pipe = self._frozen[0].to(images.device)
        z = self.codec.sample(self.codec.encode_all(images), generator)
        z = self.objective.noisy(z.flatten(0, 1), generator).unflatten(0, z.shape[:2])
        if IMAGE not in self.codec.modalities:
            return z
        rgb = list(self.codec.modalities).index(IMAGE)
        chosen = torch.rand(len(images), generator=generator) < self.predicted_share
        chosen = chosen.to(present.device) & present[:, rgb]
        if chosen.any():
            given = (images[chosen, rgb] / 2 + 0.5).permute(0, 2, 3, 1)
            seed = int(torch.randint(2**31, (), generator=generator))
            output: Any = pipe(conditions={IMAGE: list(given.float().cpu().numpy())}, seed=seed, output_type="latent")
            predicted = self.codec.unwhiten_all(output.latents.to(z))
            others = torch.arange(z.shape[1], device=z.device) != rgb
            z[chosen] = torch.where(others[:, None, None, None], predicted, z[chosen])
        return z


def decoder_run(config: TrainingConfig) -> Run:
    """Recipe "decoder": that of ``model.pretrained``, on a dataset folder with its modalities."""
    pipe = pretrained_pipeline(config).to(dtype=torch.float32)
    name = f"model.pretrained {config.model.pretrained}"
    train, val = images_as(config, pipe.modalities, name)
    torch.manual_seed(config.seed)
    module = DecoderModule(
        pipe,
        make_autoencoder_objective(pipe.modalities, config.decoder.settings, "decoder.settings"),
        config.decoder.predicted_share,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    return in_place(pipe, module, data_module(config, train, val))
