"""The part of ``mmdit demo`` for models that take prompts: words, and objects cut out of pictures of unseen scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmdit.cli.common.model import note
from mmdit.cli.common.pictures import labelled_grid
from mmdit.cli.common.showcase import Part, Steps
from mmdit.errors import UserError
from mmdit.metrics.maps import label_set
from mmdit.metrics.prompts.evaluation import takes_prompts
from mmdit.metrics.prompts.instrument import RELATIONS, Seen, find_instrument
from mmdit.metrics.samples import GroundTruth
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.prompt import parse

GUIDANCE_SCALE = 3.0  # words of two objects need more of it than a category


@dataclass(frozen=True)
class TwoThings:
    """Two objects by colour and category, and how the first stands to the second."""

    first: tuple[str, str]
    relation: str
    second: tuple[str, str]

    @property
    def text(self) -> str:
        words = {"left": "left of", "right": "right of", "front": "in front of", "behind": "behind"}[self.relation]
        return f"a {' '.join(self.first)} {words} a {' '.join(self.second)}"

    def judge(self, seen: Seen) -> dict[str, float | None]:
        """1 or 0 each; colour and relation of two objects that are both there."""
        found = [seen.find(category) for _, category in (self.first, self.second)]
        first, second = found
        if first is None or second is None:
            return {"present": 0.0, "colour": None, "relation": None, "all": 0.0}
        colour = float((first.colour_name, second.colour_name) == (self.first[0], self.second[0]))
        relation = float(RELATIONS[self.relation](first, second))
        return {"present": 1.0, "colour": colour, "relation": relation, "all": colour * relation}


ASKED = (
    TwoThings(("red", "torus"), "left", ("blue", "cone")),
    TwoThings(("green", "sphere"), "right", ("purple", "box")),
    TwoThings(("yellow", "cylinder"), "front", ("cyan", "torus")),
    TwoThings(("orange", "cone"), "behind", ("blue", "sphere")),
)


def reads_prompts(pipe: MultimodalDiTPipeline) -> bool:
    """Whether a model takes prompts, and these ones' words. Says why not, where it takes others."""
    encoder = pipe.prompt_encoder() if takes_prompts(pipe) else None
    if encoder is None:
        return False
    try:
        encoder.check([parse(asked.text) for asked in ASKED])
        return True
    except UserError as error:
        note(f"prompt.png is left out: {error}")
        return False


def show_prompts(steps: Steps, scenes: Sequence[GroundTruth]) -> Part:
    """Texts -> all modalities, judged by the bundled detector; then subjects cut out of the scenes, in other places."""
    tasks = steps.tasks()
    tasks.guidance_scale = max(GUIDANCE_SCALE, steps.guidance_scale)
    texts = [asked.text for asked in ASKED]
    outputs = tasks.prompt(texts, range(len(texts)))
    subjects = _subjects(steps, scenes)
    templates = [
        f"a {{{category}}} {'behind a cone' if category != 'cone' else 'behind a box'}" for category, _, _ in subjects
    ]
    pictures = [[(Image.fromarray(image), mask)] for _, image, mask in subjects]
    outputs += tasks.prompt(
        templates, range(len(texts), len(texts) + len(templates)), subjects=pictures, fusing_scale=1.0
    )
    names = list(steps.pipe.modalities)
    shown = [None] * len(texts) + [
        np.where(mask[..., None], image, 255).astype(np.uint8) for _, image, mask in subjects
    ]
    rows = [
        [picture, *(steps.picture(name, arrays[name]) for name in names)]
        for picture, arrays in zip(shown, outputs, strict=True)
    ]
    measured: dict[str, Any] = {}
    categories = {category for asked in ASKED for _, category in (asked.first, asked.second)}
    instrument = find_instrument(steps.pipe, sorted(categories))
    if instrument is not None:
        seen = instrument.look([arrays["rgb"] for arrays in outputs[: len(texts)]])
        scores = [asked.judge(each) for asked, each in zip(ASKED, seen, strict=True)]
        wrong = [asked.judge(each) for asked, each in zip(ASKED, [*seen[1:], *seen[:1]], strict=True)]
        measured = {
            "prompts": {"text": {"two": _means(scores)}},
            "controls": {"shuffled_prompts": {"text": {"two": _means(wrong)}}},
        }
    return labelled_grid(rows, [*texts, *templates], ["subject", *names]), measured, len(outputs)


def _means(scores: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in scores[0]:
        known = [value for score in scores if (value := score[name]) is not None]
        means[name] = sum(known) / len(known) if known else None
    return means


def _subjects(steps: Steps, scenes: Sequence[GroundTruth]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Category, picture (H, W, 3) uint8 and mask (H, W) of the largest main objects of two scenes of two categories."""
    labels = label_set(steps.pipe)
    assert labels is not None
    found = []
    for scene in scenes:
        if scene.category is not None and (number := labels.id_of(scene.category)) is not None:
            mask = scene.maps["segmentation"] == number
            found.append((int(mask.sum()), scene.category, scene.maps["rgb"], mask))
    found.sort(key=lambda each: -each[0])
    chosen: dict[str, tuple[str, np.ndarray, np.ndarray]] = {}
    for _, category, image, mask in found:
        chosen.setdefault(category, (category, image, mask))
    return list(chosen.values())[:2]
