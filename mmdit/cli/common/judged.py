"""A split of prompts and what judges pictures of them, for the commands that can't do without either."""

from __future__ import annotations

from pathlib import Path

from mmdit.errors import UserError
from mmdit.metrics.prompts.cases import PromptedSplit
from mmdit.metrics.prompts.instrument import Instrument, find_instrument
from mmdit.metrics.samples import EvaluationSamples
from mmdit.modalities import MODALITIES
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


def judged_split(
    pipe: MultimodalDiTPipeline | None, data: Path, split: str, seed: int, detector: str | None
) -> tuple[PromptedSplit, Instrument]:
    """Read the prompts of a split, and load what judges them. Raises UserError where there is none of either.

    ``pipe``: the model that takes them; None = any, to find out whether there are both.
    """
    modalities, size = (MODALITIES, 64) if pipe is None else (pipe.modalities, pipe.native_shape)
    prompted = PromptedSplit(EvaluationSamples(data, split, modalities, size, seed=seed), split)
    if not prompted:
        raise UserError(f"{data / split}: has no prompts.jsonl; 'mmdit data render' and 'mmdit data prompts' write it")
    instrument = find_instrument(pipe, prompted.categories, detector)
    if instrument is None:
        raise UserError("no detector knows the dataset's categories: name one with --detector")
    return prompted, instrument
