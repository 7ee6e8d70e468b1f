"""Recipe "detector": the instrument that judges what prompts made, on scenes apart from the generator's."""

from __future__ import annotations

from typing import Any

import torch

from mmdit.encoders.scene_detector import SceneDetector, SceneDetectorObjective
from mmdit.errors import UserError
from mmdit.names import BACKGROUND_CLASSES
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import Batch
from mmdit.training.labelled import LabelledModule
from mmdit.training.module import Losses
from mmdit.training.recipes.data import data_module, image_data
from mmdit.training.run import Run


class DetectorModule(LabelledModule):
    """Trains the detector. The batch: ``rgb`` (B, 3, H, W) in [-1, 1], ``segmentation`` (B, 3, H, W) colours, ``id``."""

    network: SceneDetector
    objective: SceneDetectorObjective

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        return self.objective(self.network, batch["rgb"], labels=self.labels(batch), generator=generator)


def detector_run(config: TrainingConfig) -> Run:
    """Recipe "detector": the instrument that judges what prompts made, on scenes apart from the generator's."""
    train, val, modalities = image_data(config)
    for name in ("rgb", "segmentation"):
        if name not in modalities:
            raise UserError(f"recipe 'detector' learns from rgb and segmentation: {config.data.path} has no {name}")
    height, width = train[0]["rgb"].shape[1:]
    torch.manual_seed(config.seed)
    codec: Any = train.codecs["segmentation"]
    detector = SceneDetector(codec.names, height, **vars(config.detector))
    if height != width or height % detector.multiple:
        raise UserError(
            f"recipe 'detector' takes square images with a side that is a multiple of {detector.multiple}: those in "
            f"{config.data.path} are {height} x {width}"
        )
    background = [i for i, name in enumerate(codec.names) if name in BACKGROUND_CLASSES]
    module = DetectorModule(
        detector,
        SceneDetectorObjective(background_labels=background),
        codec,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    return Run(
        module, data_module(config, train, val), lambda folder, _=None: detector.save_pretrained(folder), "detector", []
    )
