"""LoRA in recipe "transformer": the weights of a trained model stay, low-rank updates are trained beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from mmdit.data.latents import LatentShards
from mmdit.data.manifest import NO_CATEGORY
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.errors import UserError
from mmdit.modalities import Modality, get_modalities
from mmdit.models.adapters import require_peft
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.card import lora_card, write_card
from mmdit.pipelines.loading import INDEX, check_folder
from mmdit.pipelines.lora import adapter_state
from mmdit.pipelines.lora_file import WEIGHTS, write_lora
from mmdit.storage.component import load_component
from mmdit.storage.digests import digest_tensors
from mmdit.storage.json_object import read_object
from mmdit.training.config import LoRAConfig, TrainingConfig
from mmdit.training.recipes.data import LatentData, check_encoding, pretrained_folder

logger = logging.getLogger(__name__)


@dataclass
class LoRABase:
    """The model that a LoRA is for, and the network with the adapter.

    Args:
        name, folder: model.pretrained, as given and where it is.
        network: the transformer with the adapter, the rest frozen.
        vae: of the model.
        modalities: of the model, in the network's order.
        id2label: names of its classes, where they have any.
        settings: the section lora.
    """

    name: str
    folder: Path
    network: MultimodalDiT
    vae: AutoencoderKL
    modalities: dict[str, Modality]
    id2label: dict[int, str]
    settings: LoRAConfig

    @property
    def meaning(self) -> dict[str, Any]:
        """Of the updates' weights (``mmdit.training.meaning``): the weights they are added to, and how much they count."""
        own = {name: weight for name, weight in self.network.state_dict().items() if "lora_" not in name}
        alpha = self.settings.rank if self.settings.alpha is None else self.settings.alpha
        return {"model.pretrained": digest_tensors(own), "lora.alpha": alpha}

    def of(self, config: TrainingConfig) -> TrainingConfig:
        """The configuration with the network's own values in the section model, and the model's whitening."""
        own = self.network.config
        same = {name: getattr(own, name) for name in ("patch_size", "block", "conditioner", "prediction")}
        if same.pop("prediction") != config.objective.prediction:
            raise UserError(
                f"objective.prediction is {config.objective.prediction!r}, and model.pretrained {self.name} predicts "
                f"{own.prediction!r}: give that"
            )
        model = replace(config.model, modalities=list(own.modalities), **same)
        return replace(config, model=model, data=replace(config.data, whitening="pretrained"))

    def adopt(self, data: LatentData) -> LatentData:
        """The data as the model reads them, categories by the model's ids. Raises UserError for latents of other networks."""
        check_encoding(data, f"model.pretrained {self.name}", self.vae, self.modalities, whitened=False)
        count = self.network.config.num_classes
        ids = {label: number for number, label in self.id2label.items()}
        table = [ids.get(name, NO_CATEGORY) for name in data.categories]
        if unknown := [name for name in data.categories if name not in ids]:
            listed = ", ".join(unknown[:8]) + (", …" if len(unknown) > 8 else "")
            logger.warning(
                "model.pretrained %s lacks the categories %s: their samples train without one", self.name, listed
            )
        for split in (data.train, data.val):
            latents = getattr(split, "latents", split)  # prompts stand around them
            if isinstance(latents, LatentShards):
                latents.relabel(table)
        categories = [self.id2label.get(number, str(number)) for number in range(count)]
        return replace(data, vae=self.vae, modalities=self.modalities, categories=categories)

    def network_for(self, prompts: FrozenPromptEncoder | None) -> MultimodalDiT:
        """The network with the adapter. Raises UserError where the prompts' encoders are not of the model's widths."""
        settings = self.network.config.conditioner_settings
        for name, width in ({} if prompts is None else prompts.widths).items():
            if settings.get(name) != width:
                raise UserError(
                    f"prompts: {name} is {width}, and {settings.get(name)} in model.pretrained {self.name}: give its own encoders"
                )
        return self.network

    def export(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write ``pytorch_lora_weights.safetensors`` and a model card."""
        state, settings = adapter_state(self.network, weights=weights)
        folder.mkdir(parents=True, exist_ok=True)
        write_lora(folder / WEIGHTS, state, settings)
        write_card(folder, lora_card(self.name, settings))


def lora_base(config: TrainingConfig) -> LoRABase:
    """Load model.pretrained and add the adapter that the section lora describes.

    Raises:
        UserError: no model.pretrained, sections that a LoRA can't have, a target that the network lacks, no peft.
    """
    settings = config.lora
    assert settings is not None
    require_peft()
    from peft import LoraConfig

    if config.model.pretrained is None:
        raise UserError("lora needs model.pretrained: give a pipeline folder or a bundled model, such as scenes64")
    for key, value, why in (
        ("alignment", config.alignment, "the projector is no part of a LoRA"),
        ("model.trainable", config.model.trainable, "a LoRA trains its own weights alone"),
        (
            "model.weights_from",
            config.model.weights_from or None,
            "a LoRA leaves the weights of model.pretrained as they are",
        ),
        ("trainer.float8", config.trainer.float8 or None, "frozen layers with updates are not converted"),
    ):
        if value is not None:
            raise UserError(f"{key} is given beside lora: {why}; leave one of the two out")
    folder = pretrained_folder(config.model.pretrained)
    check_folder(folder, "MultimodalDiTPipeline")
    index = read_object(folder / INDEX)
    network = load_component(folder / "transformer", MultimodalDiT)
    known, names = index.get("modalities") or {}, network.config.modalities
    modalities = {name: Modality.from_dict(known[name]) for name in names} if known else get_modalities(names)
    torch.manual_seed(config.seed)
    try:
        network.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.rank if settings.alpha is None else settings.alpha,  # type: ignore[arg-type]
                target_modules=settings.target_modules,
            )
        )
    except UserError as error:
        raise UserError(f"lora: {error}") from error
    network.train()
    if config.model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return LoRABase(
        config.model.pretrained,
        folder,
        network,
        load_component(folder / "vae", AutoencoderKL),
        modalities,
        {int(number): str(label) for number, label in (index.get("id2label") or {}).items()},
        settings,
    )
