"""Prompts of a split, kind by kind: what the model makes of them, and the same numbers for pictures that show what is right,
what is wrong, and what is merely copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdit.errors import UserError
from mmdit.metrics.maps import first_of_kind
from mmdit.metrics.prompts.cases import PromptCase, PromptedSplit
from mmdit.metrics.prompts.instrument import Instrument
from mmdit.metrics.prompts.kind_evaluation import KindEvaluation, Setup
from mmdit.metrics.prompts.kinds import KINDS, Contradiction, PromptKind
from mmdit.metrics.prompts.networks import ImageTextNetwork
from mmdit.metrics.prompts.pictures import RealPictures
from mmdit.metrics.prompts.scores import ScoreTable, place
from mmdit.metrics.tasks import TaskRunner
from mmdit.prompt import Prompt, parse_text

__all__ = ["FUSING_SCALES", "PromptEvaluation", "ScoreTable", "fuses_subjects", "place", "takes_prompts"]

FUSING_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


def takes_prompts(pipe: Any) -> bool:
    """Whether a pipeline has an encoder of prompts."""
    return getattr(pipe, "text_encoder", None) is not None


def fuses_subjects(pipe: Any) -> bool:
    """Whether a pipeline has a prediction from the text alone to fuse the subjects' with."""
    return bool(getattr(pipe.transformer.conditioner, "fuses_subjects", False))


class PromptEvaluation:
    """Measures one model on the prompts of a split.

    Args:
        tasks: runs the model; None = only what needs no model: real pictures and copied references.
        split: the captions, and the true pictures and masks.
        instrument: what judges.
        count: prompts of each kind at most.
        batch_size: prompts at a time; the numbers do not depend on it.
        clip: for ``image_similarity`` (to the subject's true picture) and ``text_similarity``; None = not measured.
        fusing_scales: rows of the fusing sweep.
        kinds: what is asked, by name.
        progress: show a bar.
    """

    def __init__(
        self,
        tasks: TaskRunner | None,
        split: PromptedSplit,
        instrument: Instrument,
        *,
        count: int,
        batch_size: int = 32,
        clip: ImageTextNetwork | None = None,
        fusing_scales: Sequence[float] = FUSING_SCALES,
        kinds: Mapping[str, PromptKind] = KINDS,
        progress: bool = True,
    ) -> None:
        self.tasks, self.split, self.count = tasks, split, count
        self.fusing_scales, self.kinds = tuple(fusing_scales), dict(kinds)
        pictures = RealPictures(split, instrument, None if tasks is None else tasks.pipe)
        self.setup = Setup(tasks, pictures, clip, batch_size, progress)
        self.notes: list[str] = []

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what belongs under "prompts", and under "controls": control -> kind -> metric -> value."""
        prompts: dict[str, Any] = {}
        controls: dict[str, Any] = {}
        for name, kind, cases in self._asked():
            for control, table in KindEvaluation(self.setup, name, kind, cases).run().items():
                place(controls if control else prompts, f"{control}.{name}" if control else name, table.compute())
        if (rows := self.sweep_fusing()) is not None:
            prompts["fusing"] = rows
        return prompts, controls

    def made(self) -> dict[str, ScoreTable]:
        """Kind -> the model alone, without controls."""
        return {name: KindEvaluation(self.setup, name, kind, cases).made() for name, kind, cases in self._asked()}

    def _asked(self) -> Iterator[tuple[str, PromptKind, list[PromptCase]]]:
        """The kinds that can be measured, with their prompts; ``notes`` says why others are not."""
        for name, kind in self.kinds.items():
            if (reason := self._lacks(kind)) is not None:
                self.notes.append(f"prompts.{name} is not measured: {reason}")
                continue
            refused: list[str] = []
            cases = [case for case in self._cases(kind, refused) if self._can_give(kind, case)]
            if refused:
                self.notes.append(
                    f"prompts.{name}: {len(refused)} can't be read and are left out, such as: {refused[0]}"
                )
            if not cases:
                self.notes.append(f"prompts.{name} is not measured: the split's captions ask for no such thing")
                continue
            yield name, kind, cases

    def _cases(self, kind: PromptKind, refused: list[str]) -> list[PromptCase]:
        """The prompts of a kind; what is wrong with those that the model's encoder can't read is added to ``refused``."""
        encoder = None if self.tasks is None else self.tasks.pipe.prompt_encoder()
        if encoder is None:
            return kind.cases(self.split, self.count)

        def can_read(case: PromptCase) -> bool:
            try:
                encoder.check([Prompt(parse_text(case.template))])
            except UserError as error:
                refused.append(str(error))
                return False
            return True

        return kind.cases(self.split, self.count, can_read)

    def _lacks(self, kind: PromptKind) -> str | None:
        if kind.given is None:
            return None
        if first_of_kind(self.split.samples.codecs, kind.given) is None:
            return f"model and data share no {kind.given}"
        return None

    def _can_give(self, kind: PromptKind, case: PromptCase) -> bool:
        name = None if kind.given is None else first_of_kind(self.split.samples.codecs, kind.given)
        return name is None or self.split.samples.samples[case.sample].files.get(name) is not None

    def sweep_fusing(self) -> list[dict[str, Any]] | None:
        """Words that contradict the picture, for each fusing scale; None without a model that fuses."""
        if self.tasks is None or not fuses_subjects(self.tasks.pipe):
            return None
        kind = Contradiction()
        cases = self._cases(kind, [])
        rows = []
        for scale in self.fusing_scales if cases else ():
            evaluation = KindEvaluation(self.setup, "fusing", kind, cases, fusing_scale=scale)
            rows.append({"fusing_scale": scale, **evaluation.made().compute()})
        return rows or None
