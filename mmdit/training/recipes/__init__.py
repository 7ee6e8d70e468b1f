"""What can be trained, by name: each recipe is a function from configuration to Run."""

from __future__ import annotations

from collections.abc import Callable

from mmdit.bounds import check_bounds
from mmdit.errors import UserError, check_choice, unknown_name
from mmdit.training.config import TrainingConfig
from mmdit.training.optimizers import check_optimizer
from mmdit.training.recipes.autoencoder import autoencoder_run
from mmdit.training.recipes.captioner import captioner_run
from mmdit.training.recipes.clip import clip_run
from mmdit.training.recipes.decoder import decoder_run
from mmdit.training.recipes.detector import detector_run
from mmdit.training.recipes.image_encoder import image_encoder_run
from mmdit.training.recipes.styles import styles_run
from mmdit.training.recipes.teacher import teacher_run
from mmdit.training.recipes.transformer import transformer_run
from mmdit.training.run import Run
from mmdit.training.strategies import check_processes

RECIPES: dict[str, Callable[[TrainingConfig], Run]] = {
    "transformer": transformer_run,
    "autoencoder": autoencoder_run,
    "decoder": decoder_run,
    "teacher": teacher_run,
    "clip": clip_run,
    "image_encoder": image_encoder_run,
    "styles": styles_run,
    "detector": detector_run,
    "captioner": captioner_run,
}


def build_run(config: TrainingConfig) -> Run:
    """Build what a configuration describes. Raises UserError for anything that doesn't fit."""
    if config.recipe not in RECIPES:
        raise unknown_name("recipe", config.recipe, RECIPES)
    check_bounds(config)
    check_processes(config.trainer)
    check_optimizer(config.optimizer)
    if config.model.modalities is not None:
        check_choice("model.modalities", config.model.modalities)
    if config.trainer.strategy == "fsdp2" and config.recipe != "transformer":
        raise UserError(
            f"trainer.strategy 'fsdp2' shards transformers: recipe {config.recipe!r} is small, train it with 'ddp'"
        )
    return RECIPES[config.recipe](config)
