"""Recipe "image_encoder": CLIP's image tower, trained on until a picture's embedding tells the colours of floor and wall."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from mmdit.data.captioned import ImagesWithCrops
from mmdit.encoders.ground_colours import GroundColourObjective, GroundReader, mean_colours
from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.names import BACKGROUND_CLASSES
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import Batch
from mmdit.training.labelled import LabelledModule
from mmdit.training.recipes.data import data_module, sized_images
from mmdit.training.run import Run


class ImageEncoderModule(LabelledModule):
    """Trains an image tower. The batch is that of ``ImagesWithCrops``, with ``segmentation`` (B, 3, H, W) colours."""

    network: GroundReader
    objective: GroundColourObjective

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        classes = tuple(self.segmentation.names.index(name) for name in BACKGROUND_CLASSES)
        colours = mean_colours(batch[IMAGE], self.labels(batch), classes)
        return self.objective(self.network, batch[IMAGE], colours, batch.get("crops"))


def image_encoder_run(config: TrainingConfig) -> Run:
    """Recipe "image_encoder": the tower of ``image_encoder.pretrained``, on a dataset folder with captions and segmentation."""
    if config.data.path is None:
        raise UserError(
            "data.path is null: recipe 'image_encoder' needs a dataset folder with captions (see 'mmdit data render')"
        )
    if config.image_encoder.pretrained is None:
        raise UserError(
            "image_encoder.pretrained is null: give a folder or a Hub id of a CLIP model or its image tower"
        )
    torch.manual_seed(config.seed)
    source = PretrainedFolder.find(config.image_encoder.pretrained, "image_encoder.pretrained")
    reader = GroundReader(source.load_model(CLIPVisionModelWithProjection))
    train = _images(config, config.data.train_split, reader.image_size, mirrored=True)
    val = None
    if config.data.val_split is not None and config.trainer.validate_every > 0:
        val = _images(config, config.data.val_split, reader.image_size)
    codec: Any = train.images.codecs["segmentation"]
    if lacking := [name for name in BACKGROUND_CLASSES if name not in codec.names]:
        raise UserError(
            f"recipe 'image_encoder' learns colours of {' and '.join(BACKGROUND_CLASSES)}: {config.data.path} has no "
            f"segmentation class {lacking[0]!r}"
        )
    module = ImageEncoderModule(
        reader,
        GroundColourObjective(reader, config.image_encoder.colour_weight),
        codec,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    return Run(
        module, data_module(config, train, val), lambda folder, _=None: reader.save_tower(folder), config.recipe, []
    )


def _images(config: TrainingConfig, split: str, size: int, mirrored: bool = False) -> ImagesWithCrops:
    return ImagesWithCrops(sized_images(config, split, [IMAGE, "segmentation"], size, mirrored), config.seed)
