"""Targets that trained models predict, in place of the data's (distillation, arXiv 1503.02531).

What a model knew already is kept while it learns something else ("learning without forgetting", arXiv 1606.09282), and what
models learned apart comes together in one. A prediction is the mean of what the data say, without a sample's own noise, so
far fewer steps are needed. B samples, M modalities, C H W latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmdit.conditioning import NO_SUBJECT, Conditioning
from mmdit.flow.path import PathSample
from mmdit.flow.prediction import PREDICTIONS
from mmdit.models.prompted import PromptInputs
from mmdit.models.transformer import MultimodalDiT
from mmdit.names import SAMPLE

NO_PROMPT, TEXT, PICTURES, GROUND = "no_prompt", "text", "pictures", "ground"
PROMPT_KINDS = (NO_PROMPT, TEXT, PICTURES, GROUND)


class Distillation:
    """What trained networks predict of a step's samples, each of those with its kind of prompt.

    Args:
        teachers: name in ``PROMPT_KINDS`` -> network, of the trained one's modalities. It reads prompts of its kinds alone, as
            the trained one does. They are frozen, and no submodules: checkpoints and the optimizer don't see them.
    """

    def __init__(self, teachers: Mapping[str, MultimodalDiT]) -> None:
        self.teachers = {kind: teacher.eval().requires_grad_(False) for kind, teacher in teachers.items()}

    @torch.no_grad()
    def __call__(
        self,
        path: PathSample,
        clean: Tensor,
        roles: Tensor,
        *,
        prompt: Any,
        conditioning: Conditioning,
        shows_ground: Sequence[bool] | None = None,
    ) -> tuple[PathSample, Tensor]:
        """The path's velocity and the data (B, M, C, H, W), in rows that have a teacher as it predicts them.

        Args:
            path, clean, roles: as an objective has them (``mmdit.flow.flow_matching.Teach``).
            prompt: what a conditioner reads; what training dropped is gone.
            conditioning: what the trained network's made of it.
            shows_ground: of each sample, see ``PromptedLatents``; None = of none.
        """
        velocity, clean, kinds = path.velocity.clone(), clean.clone(), kinds_of(conditioning, shows_ground)
        for teacher in dict.fromkeys(self.teachers.values()):  # one of several kinds is asked once
            asked = [kind for kind, network in self.teachers.items() if network is teacher]
            numbers = torch.tensor([PROMPT_KINDS.index(kind) for kind in asked], device=kinds.device)
            rows = torch.isin(kinds, numbers).nonzero().flatten()
            if len(rows) == 0:
                continue
            theirs = teacher.to(clean.device).conditioner(_shown(prompt, asked)).rows(rows)
            x_t, t = path.x_t[rows], path.timesteps[rows]
            output = teacher(x_t, t, roles[rows], theirs).sample.to(clean.dtype)
            velocity[rows] = PREDICTIONS[teacher.config.prediction].to_velocity(output, x_t, t)
            sample = PREDICTIONS[SAMPLE].from_velocity(velocity[rows], x_t, t)
            clean[rows] = output if teacher.config.prediction == SAMPLE else sample
        return replace(path, velocity=velocity), clean


def _shown(prompt: Any, kinds: Sequence[str]) -> Any:
    """What a teacher of these kinds is shown of a batch's prompts: its encoders need not fit the others."""
    if not isinstance(prompt, PromptInputs):
        return prompt
    if set(kinds) == {NO_PROMPT}:
        return prompt.class_labels
    if {PICTURES, GROUND} & set(kinds) or prompt.prompts is None:
        return prompt
    return replace(prompt, prompts=prompt.prompts.text_only())


def kinds_of(conditioning: Conditioning, shows_ground: Sequence[bool] | None = None) -> Tensor:
    """(B,) int64, numbers in ``PROMPT_KINDS``: no words, words alone, or words of which some have pictures, of ground or not."""
    none = torch.zeros(len(conditioning.vector), dtype=torch.int64, device=conditioning.vector.device)
    if conditioning.tokens is None:
        return none
    silent = none.bool() if conditioning.token_mask is None else ~conditioning.token_mask.any(1)
    kinds = torch.where(silent, PROMPT_KINDS.index(NO_PROMPT), PROMPT_KINDS.index(TEXT))
    if conditioning.subject_ids is None:
        return kinds
    shown = torch.full_like(kinds, PROMPT_KINDS.index(PICTURES))
    if shows_ground is not None:
        shown[torch.tensor(shows_ground, device=shown.device)] = PROMPT_KINDS.index(GROUND)
    return torch.where((conditioning.subject_ids != NO_SUBJECT).any(1), shown, kinds)
