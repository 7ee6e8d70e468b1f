"""What a captioner says of pictures, held against what they show: answers, captions, and prompts with pictures read out.

For models of recipe "captioner" (``mmdit.encoders.captioner``), on samples that ``mmdit.data.instructions`` asks about.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from mmdit.data.instructions import IMAGE_MARK, Instructions
from mmdit.data.prompts import CaptionedSample, Entity
from mmdit.encoders.captioner import CaptionerObjective, say
from mmdit.errors import UserError
from mmdit.metrics.arrays import MeanWithError
from mmdit.metrics.maps import batched
from mmdit.progress import Progress

QUESTIONS_AT_A_TIME = 32


# Name of a share -> whether each answer is right.
Shares = defaultdict[str, MeanWithError]


class CaptionerEvaluation:
    """Shares of what a captioner says rightly, and the control: the same with the picture of another sample.

    - ``question.<kind>``: answers all of whose words are right; ``kind_of`` says what a question is about.
    - ``caption.categories``: captions that name one thing at least, and nothing that isn't there; ``caption.colours``: those
      that put a colour before a name, and it is that thing's each time (the others aren't counted).
    - ``prompt``: prompts in which pictures stand for words that are read out word by word, from the pictures.

    Words are the likeliest, one after the other.

    Args:
        model, processor: of recipe "captioner".
        data: a split that it was not trained on.
        kind_of: kind of a question, by its text.
        nouns: names of all things that can be there; colours: the words of colours.
        progress: show a bar.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        data: Instructions,
        *,
        kind_of: Callable[[str], str],
        nouns: Sequence[str],
        colours: Sequence[str],
        progress: bool = True,
    ) -> None:
        self.model, self.processor, self.data = model.eval(), processor, data
        self.kind_of, self.nouns, self.colours, self.progress = kind_of, frozenset(nouns), frozenset(colours), progress
        self.objective = CaptionerObjective(processor)

    def compute(self, count: int | None = None, seed: int = 0) -> dict[str, Any]:
        """Measure the first ``count`` samples, None = all; ``seed``: of the prompts that are drawn.

        Returns {"captioner": shares, "controls": {"shuffled": shares}}. Raises UserError for fewer than two samples.
        """
        samples = self.data.samples[:count]
        if len(samples) < 2:
            raise UserError(
                f"num_samples is {len(samples)}: give at least 2, the control shows another sample's picture"
            )
        found, control = Shares(MeanWithError), Shares(MeanWithError)
        bar = Progress(len(samples), "evaluate-captioner", "sample", enabled=self.progress)
        rng = np.random.default_rng(seed)
        pictures = [self.data.picture(sample) for sample in samples]
        for number in bar.track(range(len(samples))):
            # Half the set away: neighbours may show the same things.
            other = pictures[(number + len(pictures) // 2) % len(pictures)]
            sample, own = samples[number], pictures[number]
            turn, shown = self.data.read_out(sample, rng)
            for shares, picture in ((found, own), (control, other)):
                self._questions(shares, sample, picture)
                text = say(self.model, self.processor, IMAGE_MARK, [picture])
                for name, value in judge_caption(text, sample.entities, self.nouns, self.colours).items():
                    shares[f"caption.{name}"].add(value)
                if shown:
                    instead = shown if shares is found else [picture] * len(shown)
                    (right,) = self.objective.answered_rightly(self.model, [[turn]], [instead])
                    shares["prompt"].add(right)
        return {"captioner": _table(found), "controls": {"shuffled": _table(control)}}

    def _questions(self, shares: Shares, sample: CaptionedSample, picture: Image.Image) -> None:
        for part in batched(self.data.questions(sample), QUESTIONS_AT_A_TIME):
            turns = [[(f"{IMAGE_MARK} {text}", answer)] for text, answer in part]
            right = self.objective.answered_rightly(self.model, turns, [[picture]] * len(part))
            for (text, _), value in zip(part, right, strict=True):
                shares[f"question.{self.kind_of(text)}"].add(value)


def _table(shares: Shares) -> dict[str, Any]:
    """Each share with its standard error and the number of answers, sorted by name."""
    return {
        name: {"right": each.mean, "standard_error": each.error, "count": len(each.values)}
        for name, each in sorted(shares.items())
    }


def judge_caption(
    text: str, entities: Sequence[Entity], nouns: frozenset[str], colours: frozenset[str]
) -> dict[str, bool]:
    """Hold a caption against what is there: "categories", and "colours" where it puts one before a name.

    >>> sphere = Entity("red sphere", (None,))
    >>> judge_caption("a blue sphere on a floor", [sphere], frozenset({"sphere", "box"}), frozenset({"red", "blue"}))
    {'categories': True, 'colours': False}
    """
    there = [entity.phrase.split() for entity in entities]
    words = re.findall(r"\w+", text)
    named = [word for word in words if word in nouns]
    verdict = {"categories": bool(named) and {phrase[-1] for phrase in there} >= set(named)}
    said = [(one, two) for one, two in pairwise(words) if one in colours and two in nouns]
    if said:
        verdict["colours"] = all(any(two == phrase[-1] and one in phrase for phrase in there) for one, two in said)
    return verdict
