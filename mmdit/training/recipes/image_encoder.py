"""Recipe "image_encoder": a model's image tower and pseudo-words, trained on until they tell a picture's floor and wall."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdit.data.captioned import ImagesWithCrops
from mmdit.encoders.ground_colours import GroundColourObjective, GroundReader, mean_colours
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.models.tiue import TIUEConditioner
from mmdit.names import BACKGROUND_CLASSES
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import Batch
from mmdit.training.labelled import LabelledModule
from mmdit.training.recipes.data import both_splits, data_module, dataset_path, pretrained_folder, sized_images
from mmdit.training.run import Run

MEASURED = 64  # pictures that the words' mean and standard deviation are taken from


class ImageEncoderModule(LabelledModule):
    """Trains an image tower and what makes words of it.

    The batch is that of ``ImagesWithCrops``, with ``segmentation`` (B, 3, H, W) colours.
    """

    network: GroundReader
    objective: GroundColourObjective

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        classes = tuple(self.segmentation.names.index(name) for name in BACKGROUND_CLASSES)
        colours = mean_colours(batch[IMAGE], self.labels(batch), classes)
        return self.objective(self.network, batch[IMAGE], colours, batch.get("crops"))


def image_encoder_run(config: TrainingConfig) -> Run:
    """Recipe "image_encoder": that of ``model.pretrained``, on a dataset folder with captions and segmentation."""
    dataset_path(config, "a dataset folder with captions")
    if config.model.pretrained is None:
        raise UserError(
            "model.pretrained is null: give a pipeline folder or a bundled model's name, of conditioner 'tiue'"
        )
    torch.manual_seed(config.seed)
    pipe = MultimodalDiTPipeline.from_pretrained(pretrained_folder(config.model.pretrained))
    conditioner = pipe.transformer.conditioner
    if pipe.image_encoder is None or not isinstance(conditioner, TIUEConditioner):
        raise UserError(
            f"model.pretrained {config.model.pretrained} makes no words of pictures: give a model of conditioner 'tiue' with "
            "an image encoder"
        )
    reader = GroundReader(pipe.image_encoder.float(), conditioner.pseudo_word, config.image_encoder.colour_scale)
    size = int(pipe.image_encoder.config.image_size)

    def images(split: str, mirrored: bool) -> ImagesWithCrops:
        return ImagesWithCrops(sized_images(config, split, [IMAGE, "segmentation"], size, mirrored), config.seed)

    train, val = both_splits(config, images)
    codec: Any = train.images.codecs["segmentation"]
    if lacking := [name for name in BACKGROUND_CLASSES if name not in codec.names]:
        raise UserError(
            f"recipe 'image_encoder' learns colours of {' and '.join(BACKGROUND_CLASSES)}: {config.data.path} has no "
            f"segmentation class {lacking[0]!r}"
        )
    reader.measure(train.read_batch(range(min(len(train), MEASURED)))[IMAGE])
    module = ImageEncoderModule(
        reader,
        GroundColourObjective(reader, config.image_encoder.colour_weight),
        codec,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )

    def export(folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        pipe.save_pretrained(folder, safe_serialization=True)

    return Run(module, data_module(config, train, val), export, "pipeline", [])
