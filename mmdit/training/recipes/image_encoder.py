"""Recipe "image_encoder": a model's image tower and pseudo-words, trained on until they tell a picture's floor and wall."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdit.data.captioned import ImagesWithCrops
from mmdit.encoders.ground_colours import GroundColourObjective, GroundReader, mean_colours
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.names import BACKGROUND_CLASSES
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import Batch
from mmdit.training.labelled import LabelledModule
from mmdit.training.module import Losses
from mmdit.training.recipes.data import both_splits, data_module, dataset_path, sized_images
from mmdit.training.recipes.in_place import in_place, tiue_pipeline
from mmdit.training.run import Run

READ = (IMAGE, "segmentation")  # what ``present`` in a batch is of
MEASURED = 64  # pictures that the words' mean and standard deviation are taken from


class ImageEncoderModule(LabelledModule):
    """Trains an image tower and what makes words of it.

    The batch is that of ``ImagesWithCrops``, with ``segmentation`` (B, 3, H, W) colours.

    Args:
        classes: rows of the palette, of ``BACKGROUND_CLASSES``.
        settings: as in ``LabelledModule``.
    """

    network: GroundReader
    objective: GroundColourObjective

    def __init__(self, *settings: Any, classes: tuple[int, ...], **more: Any) -> None:
        super().__init__(*settings, **more)
        self.classes = classes

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        colours = mean_colours(batch[IMAGE], self.labels(batch), self.classes)
        colours[~batch["present"].all(dim=1)] = torch.nan  # blank where a file is missing
        has_picture = _has_picture(batch)
        return self.objective(self.network, batch[IMAGE][has_picture], colours[has_picture], batch.get("crops"))


def _has_picture(batch: Batch) -> Tensor:
    return batch["present"][:, READ.index(IMAGE)]


def image_encoder_run(config: TrainingConfig) -> Run:
    """Recipe "image_encoder": that of ``model.pretrained``, on a dataset folder with captions and segmentation."""
    dataset_path(config, "a dataset folder with captions")
    torch.manual_seed(config.seed)
    pipe, tower, conditioner = tiue_pipeline(config)
    reader = GroundReader(tower.float(), conditioner.pseudo_word, config.image_encoder.colour_scale)
    size = int(tower.config.image_size)

    def images(split: str, mirrored: bool) -> ImagesWithCrops:
        return ImagesWithCrops(sized_images(config, split, READ, size, mirrored), config.seed)

    train, val = both_splits(config, images)
    classes = train.images.class_numbers(BACKGROUND_CLASSES)
    codec: Any = train.images.codecs["segmentation"]
    first = train.read_batch(range(min(len(train), MEASURED)))
    if not _has_picture(first).any():
        raise UserError(f"data.path {config.data.path}: none of its first {len(first['id'])} samples has {IMAGE}")
    reader.measure(first[IMAGE][_has_picture(first)])
    module = ImageEncoderModule(
        reader.train(),
        GroundColourObjective(reader, config.image_encoder.colour_weight),
        codec,
        classes=classes,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    return in_place(pipe, module, data_module(config, train, val))
