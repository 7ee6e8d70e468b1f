"""What recipe "transformer" needs for prompts: their frozen encoders, and the loss of attention to them."""

from __future__ import annotations

from pathlib import Path

from mmdit.encoders.prompt_encoder import FrozenPromptEncoder, without_networks
from mmdit.encoders.prompts import PROMPT_ENCODERS, load_prompt_encoder, make_prompt_encoder
from mmdit.errors import UserError, unknown_name
from mmdit.flow.attention import ATTENTION_LOSSES, tapped_blocks
from mmdit.models.blocks import BLOCKS
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.loading import INDEX, bundled_models, check_folder, load_optional
from mmdit.storage.component import read_config
from mmdit.storage.transformers_folder import CONFIG
from mmdit.training.config import TrainingConfig
from mmdit.training.frozen import PromptReading
from mmdit.training.grounding import GROUNDED, AttentionLoss, Grounding
from mmdit.training.recipes.data import pretrained_folder


def prompt_encoder(config: TrainingConfig) -> FrozenPromptEncoder | None:
    """The frozen encoders of a configuration's prompts, None where it has none.

    Raises:
        UserError: prompts for a conditioner that reads none, or without data on disk, or encoders that can't be loaded, or none
            given where ``model.pretrained`` has none.
    """
    settings = config.prompts
    if settings is None:
        return None
    if config.data.path is None:
        raise UserError("prompts need latents on disk: give data.path, or leave the section prompts out")
    if settings.text_encoder is None or is_pipeline(settings.text_encoder):
        encoder = _encoders_of_a_model(config)
    else:
        encoder = load_prompt_encoder(
            config.model.conditioner, settings.text_encoder, settings.image_encoder, settings.hidden_layer
        )
    encoder.max_subjects = settings.max_subjects
    return encoder


def is_pipeline(name_or_folder: str) -> bool:
    """Whether this is a bundled model's name or a pipeline's folder, whose encoders are meant."""
    return name_or_folder in bundled_models() or (Path(name_or_folder) / INDEX).is_file()


def _encoders_of_a_model(config: TrainingConfig) -> FrozenPromptEncoder:
    """The encoders of the prompts that a model reads: the one that prompts.text_encoder names, or model.pretrained."""
    give = "give a folder or a Hub id, such as openai/clip-vit-large-patch14"
    settings = config.prompts
    assert settings is not None
    name = config.model.pretrained if settings.text_encoder is None else settings.text_encoder
    where = "null, and model.pretrained" if settings.text_encoder is None else "a model's, and"
    if name is None:
        raise UserError(f"prompts.text_encoder is null, and there is no model.pretrained whose own it would be: {give}")
    for key in ("image_encoder", "hidden_layer"):
        if (given := getattr(settings, key)) is not None:
            raise UserError(
                f"prompts.{key} is {given}, and is given without an encoder as prompts.text_encoder: give both, or "
                f"--prompts.{key} null too, for the model's own"
            )
    folder = pretrained_folder(name) if settings.text_encoder is None else bundled_models().get(name, Path(name))
    check_folder(folder, "MultimodalDiTPipeline")
    theirs = read_config(folder / "transformer" / CONFIG, "MultimodalDiT").get("conditioner")
    if theirs not in PROMPT_ENCODERS:
        raise UserError(f"prompts.text_encoder is {where} {name} reads no prompts: {give}")
    if theirs != config.model.conditioner:
        raise UserError(
            f"prompts.text_encoder is {where} {name} has the encoders of model.conditioner {theirs!r}, "
            f"not {config.model.conditioner!r}: give that, or other encoders"
        )
    return make_prompt_encoder(theirs, load_optional(folder, {}))


def attention_loss(config: TrainingConfig, network: MultimodalDiT) -> AttentionLoss:
    """The attention loss of a configuration; where it is off, of no block.

    Raises:
        UserError: blocks that attend to no prompt, or numbers beyond the depth.
    """
    settings = config.prompts
    if settings is None or settings.attention_loss_weight == 0:
        return AttentionLoss()
    if not BLOCKS[config.model.block].attends_to_prompt:
        able = ", ".join(name for name, block in BLOCKS.items() if block.attends_to_prompt)
        raise UserError(
            f"prompts.attention_loss_weight needs a model.block that attends to the prompt ({able}); it is "
            f"{config.model.block!r}"
        )
    if settings.attention_loss_on not in GROUNDED:
        raise unknown_name("prompts.attention_loss_on", settings.attention_loss_on, GROUNDED)
    if settings.attention_loss not in ATTENTION_LOSSES:
        raise unknown_name("prompts.attention_loss", settings.attention_loss, ATTENTION_LOSSES)
    depth = len(network.blocks)
    numbers = tapped_blocks(depth) if settings.attention_blocks is None else tuple(settings.attention_blocks)
    if not numbers or not all(1 <= number <= depth for number in numbers):
        raise UserError(f"prompts.attention_blocks is {list(numbers)}: give numbers from 1 to depth = {depth}, or null")
    return AttentionLoss(settings.attention_loss_weight, numbers, settings.attention_loss_on, settings.attention_loss)


def prompt_reading(
    encoder: FrozenPromptEncoder | None, attention: AttentionLoss, grid: tuple[int, int]
) -> PromptReading | None:
    """What is done with the prompts of a batch where it is loaded, None = without an encoder nothing.

    ``grid``: h x w of the image's tokens.
    """
    if encoder is None:
        return None
    return PromptReading(without_networks(encoder), Grounding(attention.on, grid) if attention.blocks else None)
