"""What recipe "transformer" needs for targets that trained models predict."""

from __future__ import annotations

from torch import nn

from mmdit.encoders.hidden_layer import noted_layer
from mmdit.encoders.precompute import fingerprint
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import TrainingConfig
from mmdit.training.distillation import GROUND, NO_PROMPT, PROMPT_KINDS, TEXT, Distillation
from mmdit.training.recipes.data import LatentData, check_encoding, pretrained_folder

_SAME = ("modalities", "patch_size")  # of the network, for predictions to mean the same


def distillation(
    config: TrainingConfig, network: MultimodalDiT, data: LatentData, encoder: FrozenPromptEncoder | None
) -> Distillation | None:
    """What the section distillation says, None without it.

    Raises:
        UserError: no teacher, or one that means something else by its latents, categories or prompts.
    """
    settings = config.distillation
    if settings is None:
        return None
    named = {**vars(settings), GROUND: settings.ground or settings.pictures}
    given = {kind: name for kind in PROMPT_KINDS if (name := named[kind]) is not None}
    if not given:
        listed = ", ".join(f"distillation.{kind}" for kind in PROMPT_KINDS)
        raise UserError(f"distillation names no model: give one of {listed}, or distillation null")
    pipes: dict[str, MultimodalDiTPipeline] = {}
    for kind, name in given.items():
        if name not in pipes:
            pipes[name] = _teacher(name, kind, network, data)
        if kind != NO_PROMPT:
            _check_prompts(f"distillation.{kind} {name}", kind, pipes[name], config.model.conditioner, encoder)
    return Distillation({kind: pipes[name].transformer for kind, name in given.items()})


def _teacher(name: str, kind: str, network: MultimodalDiT, data: LatentData) -> MultimodalDiTPipeline:
    key = f"distillation.{kind}"
    pipe = MultimodalDiTPipeline.from_pretrained(pretrained_folder(name, key)).to(dtype=network.dtype)
    ours, theirs = network.config, pipe.transformer.config
    for setting in _SAME:
        if getattr(ours, setting) != getattr(theirs, setting):
            raise UserError(
                f"{key} {name}: {setting} is {getattr(theirs, setting)!r} there and {getattr(ours, setting)!r} here"
            )
    check_encoding(data, f"{key} {name}", pipe.vae, pipe.modalities)
    categories = [pipe.id2label.get(number, str(number)) for number in range(theirs.num_classes)]
    if categories != data.categories:
        raise UserError(f"{key} {name}: its categories are not those of the data, in their order")
    return pipe


def _check_prompts(
    where: str, kind: str, pipe: MultimodalDiTPipeline, conditioner: str, encoder: FrozenPromptEncoder | None
) -> None:
    """Refuse a teacher that would read the prompts otherwise. Where they are text alone its image encoder is not asked."""
    if encoder is None:
        raise UserError(f"{where}: there are no prompts, give the section prompts")
    theirs = pipe.transformer.config.conditioner
    if theirs != conditioner:
        raise UserError(f"{where}: its conditioner is {theirs!r}, that of model.conditioner {conditioner!r}")
    own = pipe.prompt_encoder()
    assert own is not None
    asked = encoder.required if kind == TEXT else encoder.components
    for name in asked:
        part, other = encoder.components[name], own.components.get(name)
        if isinstance(part, nn.Module) and (other is None or fingerprint(other) != fingerprint(part)):
            raise UserError(f"{where}: its {name} is not the one that reads prompts here: give a model that has it")
        if isinstance(part, nn.Module) and noted_layer(part) != noted_layer(other):
            raise UserError(
                f"{where}: it takes the states of layer {noted_layer(other)} of its {name}, and layer {noted_layer(part)} is "
                f"taken here: give prompts.hidden_layer {noted_layer(other)}"
            )
