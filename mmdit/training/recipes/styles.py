"""Recipe "styles": a model's refiner of prompts, trained until the style of a picture says what its floor and wall say."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from PIL import Image

from mmdit.data.styled import STYLED, TOLD, StyledPrompts
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder, without_networks
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.models.tiue import TIUEConditioner
from mmdit.names import BACKGROUND_CLASSES
from mmdit.prompt import parse
from mmdit.training.captions import check_texts, read_named
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import Batch
from mmdit.training.module import Losses, SteppedModule
from mmdit.training.optimizers import OptimizerConfig
from mmdit.training.recipes.data import both_splits, data_module, dataset_path, sized_images
from mmdit.training.recipes.in_place import in_place, tiue_pipeline
from mmdit.training.run import Run
from mmdit.training.styles import StyleObjective

TRAINED = ("token_norm", "token_proj", "refiner")  # parts of the conditioner
KINDS = ("kept", "styled", "told")


class StyleModule(SteppedModule):
    """Trains what makes tokens of a prompt's states. The batch is that of ``StyledPrompts``, read by ``StyleReading``.

    Args:
        network: the conditioner.
        objective: the loss.
        encoder: of the prompts, frozen.
        optimizer, seed, max_steps: as in ``SteppedModule``.
    """

    network: TIUEConditioner

    def __init__(
        self,
        network: TIUEConditioner,
        objective: StyleObjective,
        encoder: FrozenPromptEncoder,
        *,
        optimizer: OptimizerConfig,
        seed: int,
        max_steps: int,
    ) -> None:
        super().__init__(network, optimizer=optimizer, seed=seed, max_steps=max_steps)
        self.objective = objective
        self._frozen = (encoder,)  # no submodule: checkpoints and the optimizer don't see it

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        encoder = self._frozen[0].to(self.device)
        return self.objective(self.network, *(encoder.encode(batch[kind]) for kind in KINDS if kind in batch))


@dataclass(frozen=True)
class StyleReading:
    """Reads the prompts of a batch for their encoder, in the process that loads it."""

    encoder: FrozenPromptEncoder

    def __call__(self, batch: Batch) -> Batch:
        """The batch with what the encoder takes in place of its prompts; a list without any is left out."""
        ids = {"kept": batch["id"], "styled": batch["pair_id"], "told": batch["pair_id"]}
        read = {
            kind: read_named(list(zip(ids[kind], batch[kind], strict=True)), self.encoder)
            for kind in KINDS
            if batch[kind]
        }
        return {"id": batch["id"], **read}


def styles_run(config: TrainingConfig) -> Run:
    """Recipe "styles": the refiner of ``model.pretrained``, on a dataset folder with captions and segmentation."""
    dataset_path(config, "a dataset folder with captions")
    pipe, tower, conditioner = tiue_pipeline(config)
    if conditioner.max_subjects < len(BACKGROUND_CLASSES):
        raise UserError(
            f"model.pretrained {config.model.pretrained} takes {conditioner.max_subjects} picture in a prompt: a style is told "
            f"by {len(BACKGROUND_CLASSES)}, give a model that takes them"
        )
    if len(conditioner.refiner.layers) == 0:
        raise UserError(
            f"model.pretrained {config.model.pretrained} has no refiner, whose words read each other: give a model of "
            "conditioner_settings.refiner_depth 1 or more"
        )
    own = pipe.prompt_encoder()
    assert own is not None
    encoder = copy.deepcopy(own).float()  # a copy: the pipeline's own is written as it was
    _check_pair(config, encoder)
    size = int(tower.config.image_size)

    def prompts(split: str, mirrored: bool) -> StyledPrompts:
        images = sized_images(config, split, [IMAGE, "segmentation"], size, mirrored)
        return StyledPrompts(images, config.seed, conditioner.max_subjects)

    train, val = both_splits(config, prompts)
    for split in (train, val):
        if split is not None:
            check_texts(split.texts(), encoder)
    objective = StyleObjective(conditioner.float(), config.styles.kept_weight, config.styles.attention_weight)
    conditioner.requires_grad_(False)
    for part in TRAINED:
        getattr(conditioner, part).requires_grad_(True)
    module = StyleModule(
        conditioner.train(),
        objective,
        encoder,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    return in_place(pipe, module, data_module(config, train, val, StyleReading(without_networks(encoder))))


def _check_pair(config: TrainingConfig, encoder: FrozenPromptEncoder) -> None:
    """Refuse a model that can't read the two prompts, or not by as many tokens."""
    pictures = [Image.new("RGB", (8, 8)) for _ in BACKGROUND_CLASSES]
    prompts = [parse(STYLED, pictures[:1]), parse(TOLD, pictures)]
    try:
        lengths = encoder(prompts).mask.sum(dim=1).tolist()
    except UserError as error:
        raise UserError(f"model.pretrained {config.model.pretrained}, recipe 'styles': {error}") from None
    if lengths[0] != lengths[1]:
        raise UserError(
            f"model.pretrained {config.model.pretrained} reads {prompts[0].text!r} as {lengths[0]} tokens and "
            f"{prompts[1].text!r} as {lengths[1]}: recipe 'styles' needs an encoder that reads both by as many"
        )
