"""Recipe "clip": a small CLIP model on captioned images, the text and image encoders of a model that takes prompts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerFast

from mmdit.data.captioned import CaptionedImages
from mmdit.encoders.contrastive import ContrastiveObjective, Texts, freeze_text, make_clip, save_clip
from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.encoders.vocabulary import word_tokenizer
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.prompt import IMAGE_WORD, mirror_text
from mmdit.storage.digests import digest_json
from mmdit.training.config import CLIPConfig, TrainingConfig
from mmdit.training.module import Batch, Losses, SteppedModule
from mmdit.training.optimizers import OptimizerConfig
from mmdit.training.recipes.data import both_splits, data_module, dataset_path, sized_images
from mmdit.training.run import Run


class CLIPModule(SteppedModule):
    """Trains a ``CLIPModel``. The batch is that of ``CaptionedImages``."""

    network: CLIPModel

    def __init__(
        self,
        network: CLIPModel,
        tokenizer: PreTrainedTokenizerFast,
        objective: ContrastiveObjective,
        *,
        optimizer: OptimizerConfig,
        seed: int,
        max_steps: int,
    ) -> None:
        super().__init__(network, optimizer=optimizer, seed=seed, max_steps=max_steps)
        self.tokenizer, self.objective = tokenizer, objective

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        read = partial(Texts.read, tokenizer=self.tokenizer, device=batch["rgb"].device)
        names = read(batch["phrases"]) if "phrases" in batch else None
        return self.objective(self.network, batch["rgb"], read(batch["caption"]), batch.get("pairs"), names)


def clip_run(config: TrainingConfig) -> Run:
    """Recipe "clip": a CLIP model on a dataset folder with captions; its words are those of the training split."""
    dataset_path(config, "a dataset folder with captions")
    settings = config.clip
    train, val = both_splits(config, partial(_captioned, config))
    network, tokenizer = _new(config, train) if settings.pretrained is None else _trained(settings)
    if settings.freeze_text_layers is not None and not settings.freeze_text:
        raise UserError(
            f"clip.freeze_text_layers is {settings.freeze_text_layers}, and clip.freeze_text is false, which keeps none: "
            "set it to true, or leave the layers out"
        )
    if settings.freeze_text:
        freeze_text(network, settings.freeze_text_layers)
    module = CLIPModule(
        network,
        tokenizer,
        ContrastiveObjective(settings.subject_weight, settings.name_weight),
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    module.meaning["words"] = digest_json(tokenizer.get_vocab())

    def export(folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        save_clip(folder, network, tokenizer)

    return Run(module, data_module(config, train, val), export, "clip", [])


def _new(config: TrainingConfig, train: CaptionedImages) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    settings = config.clip
    texts = [text for caption in train.captions for text in (caption, mirror_text(caption))]
    tokenizer = word_tokenizer([*texts, IMAGE_WORD], max_length=settings.max_length)
    longest = max(len(tokens) for tokens in tokenizer(sorted(set(texts)))["input_ids"])
    if longest > settings.max_length:
        raise UserError(f"clip.max_length is {settings.max_length}: the longest caption has {longest} tokens")
    torch.manual_seed(config.seed)
    names = ("patch_size", "hidden_size", "depth", "num_heads", "projection_dim")
    sizes = {name: getattr(settings, name) for name in names}
    teacher = None if settings.teacher is None else SceneTeacher.from_pretrained(Path(settings.teacher))
    return make_clip(tokenizer, settings.image_size, teacher=teacher, **sizes), tokenizer


def _trained(settings: CLIPConfig) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    found = PretrainedFolder.find(str(settings.pretrained), "clip.pretrained")
    network = found.load_model(CLIPModel, alone=True)
    size = int(network.config.vision_config.image_size)
    if size != settings.image_size:
        raise UserError(
            f"clip.pretrained {settings.pretrained!r} reads {size} pixels, clip.image_size is {settings.image_size}"
        )
    return network.requires_grad_(True), found.load(AutoTokenizer)


def _captioned(config: TrainingConfig, split: str, mirrored: bool) -> CaptionedImages:
    images = sized_images(config, split, [IMAGE], config.clip.image_size, mirrored)
    return CaptionedImages(images, config.seed, pair_share=config.clip.pair_share)
