"""The pipelines that make prompts, the networks that each needs, and those that are used where none is named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from mmdit.errors import UserError, unknown_name
from mmdit.sources.labelling.network import FrozenNetwork
from mmdit.sources.labelling.source import ModelSource, find_source
from mmdit.sources.labelling.table import introduction
from mmdit.sources.prompts.captioner import CAPTIONERS, Captioner
from mmdit.sources.prompts.crops import CropsPipeline
from mmdit.sources.prompts.detection import DETECTORS, GROUNDERS, Detector, Grounder
from mmdit.sources.prompts.interleaved import InterleavedPipeline
from mmdit.sources.prompts.masks import SEGMENTERS, Segmenter
from mmdit.sources.prompts.pipeline import PromptPipeline
from mmdit.sources.prompts.quality import CLIP_KINDS, ClipJudge
from mmdit.sources.prompts.settings import PromptSettings


@dataclass(frozen=True)
class Part:
    """A network of a pipeline. ``option`` chooses it, among models of ``kinds``."""

    option: str
    kinds: Collection[str]
    build: Callable[[ModelSource, PromptSettings], FrozenNetwork]


PARTS: dict[str, Part] = {
    "captioner": Part("--captioner", CAPTIONERS, lambda source, s: Captioner(source, s.dtype, s.max_new_tokens)),
    "clip": Part("--quality.clip", CLIP_KINDS, lambda source, s: ClipJudge(source, s.dtype, s.quality)),
    "detector": Part("--detector", DETECTORS, lambda source, s: Detector(source, s.dtype)),
    "grounder": Part("--grounder", GROUNDERS, lambda source, s: Grounder(source, s.dtype)),
    "segmenter": Part("--segmenter", SEGMENTERS, lambda source, s: Segmenter(source, s.dtype)),
}
# Pipeline -> its class, and its parts with the model that is used where none is named; None = it works without.
PIPELINES: dict[str, tuple[type[PromptPipeline], Mapping[str, str | None]]] = {
    "crops": (CropsPipeline, {"captioner": None, "clip": None, "detector": "PekingU/rtdetr_v2_r50vd"}),
    "interleaved": (
        InterleavedPipeline,
        {
            "captioner": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            "clip": None,
            "grounder": "IDEA-Research/grounding-dino-base",
            "segmenter": "facebook/sam-vit-large",
        },
    ),
}


def load_pipeline(
    name: str,
    models: Mapping[str, str | None],
    settings: PromptSettings,
    say: Callable[[str], None] = print,
) -> PromptPipeline:
    """Load the networks of a pipeline, saying first which model each is and under which licence.

    Args:
        name: in ``PIPELINES``.
        models: part -> folder or Hub id, None = its default.
        settings: how they run.
        say: where the lines about the models go.

    Raises:
        UserError: an unknown pipeline, a part that it doesn't have, a model that is missing, can't be fetched or loaded, or
            is of another kind.
    """
    if name not in PIPELINES:
        raise unknown_name("pipeline", name, PIPELINES)
    pipeline, parts = PIPELINES[name]
    for part, model in models.items():
        if model is not None and part not in parts:
            used = ", ".join(PARTS[each].option for each in parts)
            raise UserError(f"{PARTS[part].option} {model!r}: the pipeline {name!r} has no such part: it takes {used}")
    if settings.quality.aesthetics is not None and models.get("clip") is None:
        raise UserError("--quality.aesthetics needs the CLIP model that it was made for: name it by --quality.clip")
    chosen = {part: model for part in parts if (model := models.get(part) or parts[part]) is not None}
    sources = {part: find_source(model, PARTS[part].option, PARTS[part].kinds) for part, model in chosen.items()}
    for part, source in sources.items():
        say(introduction(part, source))
    return pipeline(settings, {part: PARTS[part].build(source, settings) for part, source in sources.items()})
