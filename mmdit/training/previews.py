"""Sample grids in TensorBoard, one row per sample: RGB -> the rest, and all modalities from a category or a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.modalities import IMAGE
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import PreviewConfig


class Previews(Callback):
    """Draws grids at the start of each validation, with the averaged weights that validation runs with.

    Args:
        make_pipeline: builds a pipeline around the network in training.
        moments: (N, M, 2C, h, w) of validation samples; their RGB is the condition.
        class_labels: (N,) their categories.
        config: sizes and steps.
        prompts: of each sample its template and its subjects' images, "" = none; a prompt takes the place of the category.
            None = a model without prompts.
    """

    def __init__(
        self,
        make_pipeline: Callable[[], MultimodalDiTPipeline],
        moments: Tensor,
        class_labels: Tensor,
        config: PreviewConfig,
        prompts: Sequence[tuple[str, Sequence[Any]]] | None = None,
    ) -> None:
        self.make_pipeline, self.config = make_pipeline, config
        self.moments, self.class_labels = moments, class_labels
        self.prompts = prompts if prompts is not None and any(template for template, _ in prompts) else None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and self.config.num_samples > 0:
            for name, grid in self._grids().items():
                trainer.logger.experiment.add_image(f"previews/{name}", grid, trainer.global_step)  # type: ignore

    @torch.no_grad()
    def _grids(self) -> dict[str, Tensor]:
        pipe = self.make_pipeline()
        pipe.set_progress_bar_config(disable=True)
        was_training = pipe.transformer.training
        pipe.transformer.eval()
        common: dict[str, Any] = {
            "num_inference_steps": self.config.num_inference_steps,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "latent",
        }
        codec = LatentCodec(pipe.vae, pipe.modalities)
        generated: Any = pipe(**self._asked(), guidance_scale=self.config.guidance_scale, **common)
        grids = {"generated": _grid(codec.decode_all(generated.latents))}
        if IMAGE in codec.modalities and len(codec.modalities) > 1:
            truth = codec.decode_all(codec.latents_all(self.moments.to(generated.latents)))
            rgb = truth[:, list(codec.modalities).index(IMAGE)].clamp(-1, 1)
            images = list((rgb.float() / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy())
            understood: Any = pipe(conditions={IMAGE: images}, **common)
            grids["understood"] = _grid(torch.cat([truth, codec.decode_all(understood.latents)], dim=1))
        pipe.transformer.train(was_training)
        return grids

    def _asked(self) -> dict[str, Any]:
        labels = [None if label < 0 else label for label in self.class_labels.tolist()]
        if self.prompts is None:
            return {"class_labels": labels}
        return {
            "class_labels": [
                None if prompt else label for label, (prompt, _) in zip(labels, self.prompts, strict=True)
            ],
            "prompt": [template or None for template, _ in self.prompts],
            "subjects": [list(subjects) if template else None for template, subjects in self.prompts],
        }


def _grid(images: Tensor) -> Tensor:
    """(N, K, 3, H, W) in [-1, 1] -> one image (3, N H, K W) in [0, 1]."""
    n, k, _, h, w = images.shape
    grid = images.permute(2, 0, 3, 1, 4).reshape(3, n * h, k * w)
    return ((grid.float() + 1) / 2).clamp(0, 1).cpu()
