"""Networks that training uses and leaves as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import FeatureTeacher
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.encoders.vae_teacher import VAETeacher
from mmdit.prompt import parse
from mmdit.training.captions import read_named

Batch = dict[str, Any]
Teacher = FeatureTeacher | SceneTeacher | VAETeacher

READ = "prompts_read"  # of a batch: what the encoders of prompts take


@dataclass(frozen=True)
class PromptReading:
    """Reads the captions and subjects of a batch for their encoders, in the process that loads it: tokens and pixels.

    It takes longer than a step of a small network on a GPU does, so the training process is spared it.

    Args:
        encoder: of the prompts.
        ground: what else is made of a batch and of what its words mean to the encoder; None = nothing.
    """

    encoder: FrozenPromptEncoder
    ground: Callable[[Batch, FrozenPromptEncoder], Batch] | None = None

    def __call__(self, batch: Batch) -> Batch:
        """The batch with ``READ``, in place of the subjects' images.

        Raises:
            UserError: a caption that the encoder can't read, such as one that is too long; it names the sample.
        """
        pairs = zip(batch["caption"], batch["subjects"], strict=True)
        prompts = [parse(template, pictures) if template else None for template, pictures in pairs]
        read = read_named(list(zip(batch["id"], prompts, strict=True)), self.encoder)
        batch = {key: value for key, value in batch.items() if key != "subjects"} | {READ: read}
        return batch if self.ground is None else self.ground(batch, self.encoder)


@dataclass(frozen=True)
class FrozenNetworks:
    """Networks that a module uses and doesn't train. In a record, which makes them no submodules: checkpoints, the average
    and the optimizer don't see them."""

    codec: LatentCodec
    teacher: Teacher | None = None
    prompts: FrozenPromptEncoder | None = None

    def encode_prompts(self, batch: Batch, device: torch.device) -> Batch:
        """The batch with "prompts", what the frozen encoders make of its captions and subjects; as it is without encoders.

        Raises:
            UserError: a caption that they can't read, such as one that is too long; it names the sample.
        """
        if self.prompts is None:
            return batch
        if READ not in batch:
            batch = PromptReading(self.prompts)(batch)
        return {**batch, "prompts": self.prompts.to(device).encode(batch[READ])}

    def features(self, batch: Batch, device: torch.device) -> Tensor:
        """Features (B, T, D) of the teacher, computed from ``rgb``; without a teacher those that the batch holds."""
        if self.teacher is None:
            return batch["features"]
        return self.teacher.to(device).features(batch["rgb"])
