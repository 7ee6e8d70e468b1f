"""One kind's prompts: the model's pictures, and those of the controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from tqdm import tqdm

from mmdit.metrics.maps import PreviousPairs, batched, first_of_kind
from mmdit.metrics.prompts.cases import PromptCase
from mmdit.metrics.prompts.instrument import Seen
from mmdit.metrics.prompts.likeness import CopyTest
from mmdit.metrics.prompts.networks import ImageTextNetwork
from mmdit.metrics.prompts.pictures import RealPictures, Source
from mmdit.metrics.prompts.prompt_kind import PromptKind, Truth
from mmdit.metrics.prompts.scores import Scores, ScoreTable
from mmdit.metrics.tasks import TaskRunner
from mmdit.modalities import IMAGE

# Controls and ceilings, in the report under "controls".
SHUFFLED, REAL, THROUGH_VAE, COPIED, OTHER = (
    "shuffled_prompts",
    "real_images",
    "real_images_through_vae",
    "copied_references",
    "other_subjects",
)
_SIMILARITIES = ("image_similarity", "text_similarity")


@dataclass(frozen=True)
class Setup:
    """With what kinds are measured.

    tasks: runs the model, None = there is none; pictures: the real ones; clip: for the similarities, None = not measured;
    batch_size: prompts at a time; progress: show a bar.
    """

    tasks: TaskRunner | None
    pictures: RealPictures
    clip: ImageTextNetwork | None
    batch_size: int
    progress: bool


class KindEvaluation:
    """One kind's prompts.

    Args:
        setup: the model and what judges.
        name: of the kind in the report.
        kind: what is asked.
        cases: the prompts, at least one.
        fusing_scale: None = the model's own.
    """

    def __init__(
        self,
        setup: Setup,
        name: str,
        kind: PromptKind,
        cases: Sequence[PromptCase],
        fusing_scale: float | None = None,
    ) -> None:
        self.setup, self.name, self.kind, self.cases, self.fusing_scale = setup, name, kind, cases, fusing_scale
        self.pictures, self.tasks = setup.pictures, setup.tasks
        self.truths: dict[int, Truth] = {}
        self.has_subject = len(cases[0].references) == 1
        self.copies: CopyTest | None = None
        if self.has_subject:
            shown = dict.fromkeys((case.references[0], case.others[0]) for case in cases)
            read = self.pictures.read
            self.copies = CopyTest([(read(one), read(other)) for one, other in shown if one != other])

    def run(self) -> dict[str, ScoreTable]:
        """Control, "" = the model itself, -> its table."""
        tables = {REAL: self._table_of_real()}
        if self.has_subject:
            tables[COPIED] = self._table_of(lambda case: case.references[0])
            others = {case: self._other_subject(number, case) for number, case in enumerate(self.cases)}
            tables[OTHER] = self._table_of(others.get)
        if self.tasks is not None:
            tables |= {SHUFFLED: self._table(), "": self._table()}
            tables[THROUGH_VAE] = self._table_of_real(through_vae=True)
            pairs = PreviousPairs()
            for seen, case in self._make():
                tables[""].add(self._score(seen, case))
                for other_seen, its_case in pairs.add(seen, case):
                    tables[SHUFFLED].add(self._score(other_seen, its_case))
            for other_seen, its_case in pairs.close():
                tables[SHUFFLED].add(self._score(other_seen, its_case))
        return {control: table for control, table in tables.items() if table.num_samples}

    def made(self) -> ScoreTable:
        """The model alone, without controls."""
        table = self._table()
        for seen, case in self._make():
            table.add(self._score(seen, case))
        return table

    def _table(self) -> ScoreTable:
        return ScoreTable((*self.kind.metrics, *(("copy_rate", *_SIMILARITIES) if self.has_subject else ())))

    def _make(self) -> Iterator[tuple[Seen, PromptCase]]:
        """The model's picture of each case, seen by the instrument."""
        assert self.tasks is not None
        codecs = self.tasks.pipe.codecs
        given = None if self.kind.given is None else first_of_kind(codecs, self.kind.given)
        numbered = list(enumerate(self.cases))
        bar = tqdm(total=len(numbered), desc=f"prompts {self.name}", unit="picture", disable=not self.setup.progress)
        with bar:
            for batch in batched(numbered, self.setup.batch_size):
                cases = [case for _, case in batch]
                conditions = None
                if given is not None:
                    truths = [self.pictures.split.truth(case.sample).maps[given] for case in cases]
                    conditions = {given: [codecs[given].as_given(values) for values in truths]}
                subjects = [case.subjects for case in cases]
                made = self.tasks.prompt(
                    [case.template for case in cases],
                    [index for index, _ in batch],
                    noise=f"prompts.{self.kind.noise or self.name}",
                    subjects=subjects if any(subjects) else None,
                    conditions=conditions,
                    fusing_scale=self.fusing_scale,
                )
                seen = self.pictures.instrument.look([maps[IMAGE] for maps in made])
                yield from zip(seen, cases, strict=True)
                bar.update(len(batch))

    def _score(self, seen: Seen, case: PromptCase) -> Scores:
        scores = self.kind.score(seen, case, self._truth(case))
        if self.copies is not None:
            reference = self.pictures.read(case.references[0])
            scores["copy_rate"] = float(self.copies.is_copy(seen.picture, reference))
        if self.setup.clip is not None and self.has_subject:
            scores |= self._similarities(self.setup.clip, seen, case)
        return scores

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
        for _, scores in self._scores_of(source_of, through_vae):
            table.add(scores)
        return table

    def _scores_of(
        self, source_of: Callable[[PromptCase], Source | None], through_vae: bool
    ) -> Iterator[tuple[PromptCase, Scores]]:
        found = [(case, source) for case in self.cases if (source := source_of(case)) is not None]
        for batch in batched(found, self.setup.batch_size):
            seen = self.pictures.look([source for _, source in batch], through_vae)
            for each, (case, _) in zip(seen, batch, strict=True):
                yield case, self._score(each, case)

    def _table_of_real(self, through_vae: bool = False) -> ScoreTable:
        """What the model should make; where two pictures show that, each is judged by what it shows (``of_sample``)."""
        table, part = self._table(), self.kind.of_sample
        shown = list(self._scores_of(self._real, through_vae))
        if part:
            samples = dict(self._scores_of(lambda case: case.sample, through_vae))
            shown = [(case, {**scores, **{name: samples[case][name] for name in part}}) for case, scores in shown]
        for _, scores in shown:
            table.add(scores)
        return table

    def _real(self, case: PromptCase) -> Source | None:
        """The true picture; of a subject another one than the reference and the true one, if any."""
        if not self.has_subject:
            return case.sample
        return case.others[0] if self.kind.has_real and case.others != case.references else None

    def _other_subject(self, number: int, case: PromptCase) -> Source | None:
        return self.kind.other(case, [*self.cases[number + 1 :], *self.cases[:number]])

    def _truth(self, case: PromptCase) -> Truth:
        key = id(case)
        if key not in self.truths:
            self.truths[key] = self.kind.truth(case, self.pictures)
        return self.truths[key]
