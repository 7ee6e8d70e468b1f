"""The part of ``mmdit demo`` for models that take prompts: words, and objects cut out of pictures of unseen scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmdit.cli.common.model import note
from mmdit.cli.common.pictures import labelled_grid
from mmdit.cli.common.showcase import Part, Showcase
from mmdit.errors import UserError
from mmdit.metrics.maps import label_set
from mmdit.metrics.prompts.cases import article
from mmdit.metrics.prompts.evaluation import ScoreTable, place, takes_prompts
from mmdit.metrics.prompts.instrument import Seen, find_instrument
from mmdit.metrics.prompts.kinds import Scores, TwoObjects, score_objects
from mmdit.metrics.samples import GroundTruth
from mmdit.modalities.rgb import on_white
from mmdit.names import RELATION_WORDS
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.prompt import parse


@dataclass(frozen=True)
class Asked:
    """Objects by colour and category, one or two, and how the first stands to the second."""

    things: tuple[tuple[str, str], ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        phrases = [f"{article(thing[0])} {' '.join(thing)}" for thing in self.things]
        return phrases[0] if self.relation is None else f" {RELATION_WORDS[self.relation][0]} ".join(phrases)

    def judge(self, seen: Seen) -> Scores:
        """See ``score_objects``."""
        return score_objects(seen, self.things, self.relation)


ASKED = {
    "one": (Asked((("purple", "hourglass"),)), Asked((("yellow", "pyramid"),)), Asked((("red", "torus"),))),
    "two": (
        Asked((("red", "torus"), ("blue", "cone")), "left"),
        Asked((("yellow", "cylinder"), ("cyan", "box")), "right"),
        Asked((("orange", "cone"), ("green", "sphere")), "front"),
    ),
}


def reads_prompts(pipe: MultimodalDiTPipeline) -> bool:
    """Whether a model takes prompts, and these ones' words. Says why not, where it takes others."""
    encoder = pipe.prompt_encoder() if takes_prompts(pipe) else None
    if encoder is None:
        return False
    try:
        encoder.check([parse(asked.text) for kind in ASKED.values() for asked in kind])
        return True
    except UserError as error:
        note(f"prompt.png is left out: {error}")
        return False


def show_prompts(showcase: Showcase, scenes: Sequence[GroundTruth]) -> Part:
    """Texts -> all modalities, judged by the bundled detector; then subjects cut out of the scenes, in other places."""
    tasks = showcase.tasks
    texts = [asked.text for kind in ASKED.values() for asked in kind]
    outputs = tasks.prompt(texts, range(len(texts)))
    subjects = _subjects(showcase, scenes)
    templates = [f"{article(category)} {{{category}}} on a green floor" for category, _, _ in subjects]
    pictures = [[(Image.fromarray(image), mask)] for _, image, mask in subjects]
    outputs += tasks.prompt(
        templates, range(len(texts), len(texts) + len(templates)), subjects=pictures, fusing_scale=1.0
    )
    names = list(showcase.pipe.modalities)
    shown = [None] * len(texts) + [on_white(image, mask) for _, image, mask in subjects]
    rows = [
        [picture, *(showcase.picture(name, arrays[name]) for name in names)]
        for picture, arrays in zip(shown, outputs, strict=True)
    ]
    measured: dict[str, Any] = {}
    instrument = find_instrument(
        showcase.pipe, sorted({name for kind in ASKED.values() for asked in kind for _, name in asked.things})
    )
    if instrument is not None:
        seen, first = instrument.look([arrays["rgb"] for arrays in outputs[: len(texts)]]), 0
        for kind, several in ASKED.items():
            own = seen[first : first + len(several)]
            right = _means([asked.judge(each) for asked, each in zip(several, own, strict=True)])
            wrong = _means([asked.judge(each) for asked, each in zip(several, [*own[1:], *own[:1]], strict=True)])
            place(measured, f"prompts.text.{kind}", right)
            place(measured, f"controls.shuffled_prompts.text.{kind}", wrong)
            first += len(several)
    return labelled_grid(rows, [*texts, *templates], ["subject", *names]), measured, len(outputs)


def _means(scores: Sequence[Scores]) -> dict[str, float]:
    table = ScoreTable(TwoObjects.metrics)
    for each in scores:
        table.add(each)
    return {name: each.mean for name, each in table.means.items()}


def _subjects(showcase: Showcase, scenes: Sequence[GroundTruth]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Category, picture (H, W, 3) uint8 and mask (H, W) of the largest main objects of two scenes of two categories."""
    labels = label_set(showcase.pipe)
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
