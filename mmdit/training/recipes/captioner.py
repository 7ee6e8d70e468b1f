"""Recipe "captioner": a small multimodal LLM that captions scenes and answers questions, to be frozen and read prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import Idefics3ForConditionalGeneration

from mmdit.data.instructions import Instructions
from mmdit.encoders.captioner import MARKS, CaptionerObjective, make_captioner, save_captioner
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.encoders.vocabulary import word_tokenizer
from mmdit.errors import UserError
from mmdit.prompt import IMAGE_WORD
from mmdit.sources.scenes.questions import questions
from mmdit.storage.digests import digest_json
from mmdit.training.config import TrainingConfig
from mmdit.training.module import Batch, Losses, SteppedModule
from mmdit.training.optimizers import OptimizerConfig
from mmdit.training.recipes.data import both_splits, data_module, dataset_path
from mmdit.training.run import Run


class CaptionerModule(SteppedModule):
    """Trains a multimodal LLM. The batch is that of ``Instructions``."""

    network: Idefics3ForConditionalGeneration

    def __init__(
        self,
        network: Idefics3ForConditionalGeneration,
        objective: CaptionerObjective,
        *,
        optimizer: OptimizerConfig,
        seed: int,
        max_steps: int,
    ) -> None:
        super().__init__(network, optimizer=optimizer, seed=seed, max_steps=max_steps)
        self.objective = objective

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        return self.objective(self.network, batch)


def captioner_run(config: TrainingConfig) -> Run:
    """Recipe "captioner": on a dataset folder with captions; its words are those of the training split."""
    dataset_path(config, "a dataset folder with captions")
    train, val = both_splits(config, partial(_instructions, config))
    sizes = asdict(config.captioner)
    tokenizer = word_tokenizer([*train.texts, IMAGE_WORD], MARKS, max_length=sizes.pop("max_length"))
    torch.manual_seed(config.seed)
    folder = sizes.pop("teacher")
    teacher = None if folder is None else SceneTeacher.from_pretrained(Path(folder))
    network, processor = make_captioner(tokenizer, **sizes, teacher=teacher)
    longest = max(len(tokens) for tokens in tokenizer(train.texts)["input_ids"])
    needed = 2 * longest + train.draw.max_subjects * (
        processor.image_seq_len + 3
    )  # a prompt, its images, and it read out
    if needed > tokenizer.model_max_length:
        raise UserError(
            f"captioner.max_length is {tokenizer.model_max_length}: the longest prompt has up to {needed} tokens"
        )
    module = CaptionerModule(
        network,
        CaptionerObjective(processor),
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
    )
    module.meaning["words"] = digest_json(tokenizer.get_vocab())

    def export(folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        save_captioner(folder, network, processor)

    return Run(module, data_module(config, train, val), export, "captioner", [])


def _instructions(config: TrainingConfig, split: str, mirrored: bool) -> Instructions:
    return Instructions(
        str(config.data.path),
        split,
        questions,
        seed=config.seed,
        mirrored=mirrored,
        allow_outside=config.data.allow_outside,
    )
