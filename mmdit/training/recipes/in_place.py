"""What recipes need that train a part of a pipeline where it is: the pipeline, and the run that exports all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from mmdit.data.datamodule import ResumableDataModule
from mmdit.errors import UserError
from mmdit.models.tiue import TIUEConditioner
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.digests import digest_tensors
from mmdit.training.config import TrainingConfig
from mmdit.training.module import SteppedModule
from mmdit.training.recipes.data import pretrained_folder
from mmdit.training.run import Run


def pretrained_pipeline(config: TrainingConfig, kind: str = "") -> MultimodalDiTPipeline:
    """The pipeline ``model.pretrained``. Raises UserError for none; the message says what ``kind`` is asked for."""
    if config.model.pretrained is None:
        raise UserError(f"model.pretrained is null: give a pipeline folder or a bundled model's name{kind}")
    return MultimodalDiTPipeline.from_pretrained(pretrained_folder(config.model.pretrained))


def tiue_pipeline(
    config: TrainingConfig,
) -> tuple[MultimodalDiTPipeline, CLIPVisionModelWithProjection, TIUEConditioner]:
    """The pipeline ``model.pretrained``, its image tower and its conditioner, which makes words of what the tower sees.

    Raises UserError for none, or one that makes no words of pictures.
    """
    pipe = pretrained_pipeline(config, ", of conditioner 'tiue'")
    conditioner = pipe.transformer.conditioner
    if pipe.image_encoder is None or not isinstance(conditioner, TIUEConditioner):
        raise UserError(
            f"model.pretrained {config.model.pretrained} makes no words of pictures: give a model of conditioner 'tiue' with "
            "an image encoder"
        )
    return pipe, pipe.image_encoder, conditioner


def in_place(pipe: MultimodalDiTPipeline, module: SteppedModule, data: ResumableDataModule) -> Run:
    """A run that trains parts of a pipeline where they are, and exports all of it.

    The module's network is those parts, not a copy: what it has learned, or its average of weights, is in the pipeline.
    """

    module.meaning["model.pretrained"] = digest_tensors(pipe.transformer.state_dict(), pipe.vae.state_dict())

    def export(folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        pipe.save_pretrained(folder, safe_serialization=True)

    return Run(module, data, export, "pipeline", [])
