"""Prompts of a split, kind by kind: what the model makes of them, and the same numbers for pictures that show what is right,
what is wrong, and what is merely copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from mmdit.metrics.arrays import MeanWithError
from mmdit.metrics.maps import PreviousPairs, batched, first_of_kind
from mmdit.metrics.prompts.cases import PromptCase, PromptedSplit
from mmdit.metrics.prompts.instrument import Instrument, Seen
from mmdit.metrics.prompts.kinds import KINDS, Contradiction, PromptKind, Scores, Truth
from mmdit.metrics.prompts.likeness import CopyTest
from mmdit.metrics.prompts.networks import ImageTextNetwork
from mmdit.metrics.prompts.pictures import RealPictures, Source
from mmdit.metrics.tasks import TaskRunner
from mmdit.modalities import IMAGE

FUSING_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Controls and ceilings, in the report under "controls".
SHUFFLED, REAL, THROUGH_VAE, COPIED, OTHER = (
    "shuffled_prompts",
    "real_images",
    "real_images_through_vae",
    "copied_references",
    "other_subjects",
)
_SIMILARITIES = ("image_similarity", "text_similarity")


class ScoreTable:
    """Means of scores with their standard errors; None is left out."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.means = {name: MeanWithError() for name in metrics}
        self.num_samples = 0

    def add(self, scores: Mapping[str, float | None]) -> None:
        self.num_samples += 1
        for name, value in scores.items():
            if value is not None:
                self.means[name].add(value)

    def compute(self) -> dict[str, Any]:
        """metric -> mean, "standard_error": metric -> error, "num_samples"."""
        return {
            **{name: each.mean for name, each in self.means.items()},
            "standard_error": {name: each.error for name, each in self.means.items()},
            "num_samples": self.num_samples,
        }


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
        self.tasks, self.split, self.instrument = tasks, split, instrument
        self.count, self.batch_size, self.clip, self.progress = count, batch_size, clip, progress
        self.fusing_scales, self.kinds = tuple(fusing_scales), dict(kinds)
        self.pictures = RealPictures(split, instrument, None if tasks is None else tasks.pipe)
        self.notes: list[str] = []

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what belongs under "prompts", and under "controls": control -> kind -> metric -> value."""
        prompts: dict[str, Any] = {}
        controls: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            if (reason := self._lacks(kind)) is not None:
                self.notes.append(f"prompts.{name} is not measured: {reason}")
                continue
            cases = [case for case in kind.cases(self.split, self.count) if self._can_give(kind, case)]
            if not cases:
                self.notes.append(f"prompts.{name} is not measured: the split's captions ask for no such thing")
                continue
            for control, table in _KindEvaluation(self, name, kind, cases).run().items():
                place(controls if control else prompts, f"{control}.{name}" if control else name, table.compute())
        if (rows := self.sweep_fusing()) is not None:
            prompts["fusing"] = rows
        return prompts, controls

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
        cases = kind.cases(self.split, self.count)
        rows = []
        for scale in self.fusing_scales if cases else ():
            evaluation = _KindEvaluation(self, "fusing", kind, cases, fusing_scale=scale)
            rows.append({"fusing_scale": scale, **evaluation.made().compute()})
        return rows or None


class _KindEvaluation:
    """One kind's prompts: the model's pictures and those of the controls."""

    def __init__(
        self,
        whole: PromptEvaluation,
        name: str,
        kind: PromptKind,
        cases: Sequence[PromptCase],
        fusing_scale: float | None = None,
    ) -> None:
        self.whole, self.name, self.kind, self.cases, self.fusing_scale = whole, name, kind, cases, fusing_scale
        self.pictures = whole.pictures
        self.truths: dict[int, Truth] = {}
        self.has_subject = len(cases[0].references) == 1
        self.copies: CopyTest | None = None
        if self.has_subject:
            shown = dict.fromkeys((case.references[0], case.others[0]) for case in cases)
            read = self.pictures.read
            self.copies = CopyTest([(read(one), read(other)) for one, other in shown if one != other])

    def run(self) -> dict[str, ScoreTable]:
        """Control, "" = the model itself, -> its table."""
        tables = {REAL: self._table_of(self._real)}
        if self.has_subject:
            tables[COPIED] = self._table_of(lambda case: case.references[0])
            others = self._other_subjects()
            tables[OTHER] = self._table_of(lambda case: others.get(case))
        if self.whole.tasks is not None:
            tables |= {SHUFFLED: self._table(), "": self._table()}
            tables[THROUGH_VAE] = self._table_of(self._real, through_vae=True)
            pairs = PreviousPairs()
            for seen, case in self._make():
                self._add(tables[""], seen, case)
                for other_seen, its_case in pairs.add(seen, case):
                    self._add(tables[SHUFFLED], other_seen, its_case)
            for other_seen, its_case in pairs.close():
                self._add(tables[SHUFFLED], other_seen, its_case)
        return {control: table for control, table in tables.items() if table.num_samples}

    def made(self) -> ScoreTable:
        """The model alone, without controls."""
        table = self._table()
        for seen, case in self._make():
            self._add(table, seen, case)
        return table

    def _table(self) -> ScoreTable:
        extra: tuple[str, ...] = ("copy_rate",) if self.has_subject else ()
        return ScoreTable(
            (*self.kind.metrics, *extra, *(_SIMILARITIES if self.whole.clip and self.has_subject else ()))
        )

    def _make(self) -> Iterator[tuple[Seen, PromptCase]]:
        """The model's picture of each case, seen by the instrument."""
        tasks = self.whole.tasks
        assert tasks is not None
        codecs = tasks.pipe.codecs
        given = None if self.kind.given is None else first_of_kind(codecs, self.kind.given)
        numbered = list(enumerate(self.cases))
        bar = tqdm(total=len(numbered), desc=f"prompts {self.name}", unit="picture", disable=not self.whole.progress)
        with bar:
            for batch in batched(numbered, self.whole.batch_size):
                cases = [case for _, case in batch]
                conditions = None
                if given is not None:
                    truths = [self.whole.split.truth(case.sample).maps[given] for case in cases]
                    conditions = {given: [codecs[given].as_given(values) for values in truths]}
                made = tasks.prompt(
                    [case.template for case in cases],
                    [index for index, _ in batch],
                    noise=f"prompts.{self.name}",
                    subjects=[case.subjects for case in cases] if cases[0].references else None,
                    conditions=conditions,
                    fusing_scale=self.fusing_scale,
                )
                seen = self.whole.instrument.look([maps[IMAGE] for maps in made])
                yield from zip(seen, cases, strict=True)
                bar.update(len(batch))

    def _add(self, table: ScoreTable, seen: Seen, case: PromptCase) -> None:
        scores: Scores = self.kind.score(seen, case, self._truth(case))
        if self.copies is not None:
            reference = self.pictures.read(case.references[0])
            scores["copy_rate"] = float(self.copies.is_copy(seen.picture, reference))
        if self.whole.clip is not None and self.has_subject:
            scores |= self._similarities(self.whole.clip, seen, case)
        table.add(scores)

    def _similarities(self, clip: ImageTextNetwork, seen: Seen, case: PromptCase) -> Scores:
        pictures = [Image.fromarray(each) for each in (seen.picture, self.pictures.read(case.others[0]))]
        made, true = clip.images(pictures)
        return {
            "image_similarity": float(made @ true),
            "text_similarity": float(made @ clip.texts([case.wording])[0]),
        }

    def _table_of(self, source_of: Callable[[PromptCase], Source | None], through_vae: bool = False) -> ScoreTable:
        """The same numbers for stored pictures; a case without one is left out."""
        table = self._table()
        found = [(case, source) for case in self.cases if (source := source_of(case)) is not None]
        for batch in batched(found, self.whole.batch_size):
            seen = self.pictures.look([source for _, source in batch], through_vae)
            for each, (case, _) in zip(seen, batch, strict=True):
                self._add(table, each, case)
        return table

    def _real(self, case: PromptCase) -> Source | None:
        """What the model should make: the true picture; of a subject another one than the reference and the true one, if any."""
        if not self.has_subject:
            return case.sample
        return case.others[0] if case.others != case.references else None

    def _other_subjects(self) -> dict[PromptCase, Source]:
        """For each subject the picture of another one of its category, and of another colour."""
        found: dict[PromptCase, Source] = {}
        for number, case in enumerate(self.cases):
            own = case.objects[0]
            for each in (*self.cases[number + 1 :], *self.cases[:number]):
                if each.objects[0].category == own.category and each.objects[0].colour != own.colour:
                    found[case] = each.references[0]
                    break
        return found

    def _truth(self, case: PromptCase) -> Truth:
        key = id(case)
        if key not in self.truths:
            masks = tuple(self.whole.split.mask(one) for one in case.objects if one.entity.mask is not None)
            picture = self.pictures.read(case.sample)
            colours = tuple(picture[mask].mean(axis=0) / 255 for mask in masks)
            resized = self.whole.instrument.resize_mask
            foreground = resized(self.whole.split.foreground(case.sample))
            self.truths[key] = Truth(tuple(map(resized, masks)), colours, foreground)
        return self.truths[key]


def place(tree: dict[str, Any], name: str, value: Any) -> None:
    """Put a value at a dotted name."""
    *above, last = name.split(".")
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = value
