"""Recipe "teacher": a small ViT on labelled scenes, whose patch features align the transformer."""

from __future__ import annotations

from typing import Any

import torch

from mmdit.encoders.scene_teacher import SceneTeacher, SceneTeacherObjective
from mmdit.errors import UserError
from mmdit.names import BACKGROUND_CLASSES
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import Batch
from mmdit.training.labelled import LabelledModule
from mmdit.training.module import Losses
from mmdit.training.recipes.data import data_module, image_data
from mmdit.training.run import Run


class TeacherModule(LabelledModule):
    """Trains the small ViT teacher on scenes: category, per-pixel classes and normals from RGB.

    The batch: ``rgb``, ``normal`` (B, 3, H, W) in [-1, 1], ``segmentation`` (B, 3, H, W) colours, ``category`` (B,), ``id``.
    """

    network: SceneTeacher
    objective: SceneTeacherObjective

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        return self.objective(
            self.network,
            batch["rgb"],
            categories=batch["category"],
            labels=self.labels(batch),
            normals=batch["normal"],
            generator=generator,
        )


def teacher_run(config: TrainingConfig) -> Run:
    """Recipe "teacher": a small ViT on labelled scenes, whose patch features align the transformer."""
    train, val, modalities = image_data(config)
    for name in ("rgb", "normal", "segmentation"):
        if name not in modalities:
            raise UserError(
                f"recipe 'teacher' learns from rgb, normal and segmentation: {config.data.path} has no {name}"
            )
    height, width = train[0]["rgb"].shape[1:]
    if height != width:
        raise UserError(f"recipe 'teacher' takes square images: those in {config.data.path} are {height} x {width}")
    torch.manual_seed(config.seed)
    codec: Any = train.codecs["segmentation"]
    teacher = SceneTeacher(len(train.info.categories), len(codec.ids), height, **vars(config.teacher))
    background = [i for i, name in enumerate(codec.names) if name in BACKGROUND_CLASSES]
    module = TeacherModule(
        teacher,
        SceneTeacherObjective(background_labels=background),
        codec,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    module.meaning |= {"categories": list(train.info.categories), "classes": list(codec.names)}
    return Run(
        module, data_module(config, train, val), lambda folder, _=None: teacher.save_pretrained(folder), "teacher", []
    )
