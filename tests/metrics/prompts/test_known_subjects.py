import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.metrics.prompts.cases import PromptedSplit
from mmdit.metrics.prompts.known_subjects import SubjectScores, known_subjects
from mmdit.metrics.prompts.scores import ScoreTable
from mmdit.metrics.samples import EvaluationSamples
from mmdit.modalities import get_modalities
from mmdit.sources.scenes.subjects import block_subjects


def test_all_pictures_of_a_subject_are_found(split):
    """As the renderer composed them: blocks of eight scenes with two subjects, each alone twice and in four pairs."""
    found = known_subjects(split, 100)
    ids = {frozenset(split.samples.samples[index].id for index in subject.samples) for subject in found}
    wanted, words = set(), set()
    for block in range(2):  # scenes 8 to 15 and 24 to 31 of the split
        first = 16 * block + 8
        pairs = range(first + 4, first + 8)
        for place, subject in enumerate(block_subjects(11, "test", block)):
            own = (first + 2 * place, first + 2 * place + 1)
            wanted.add(frozenset(f"{number:06}" for number in (*own, *pairs)))
            words.add(f"{subject.colour} {subject.category}")
    assert ids == wanted
    assert {f"{subject.named.colour} {subject.named.category}" for subject in found} == words
    for subject in found:
        assert subject.words.endswith(f"{subject.named.colour} {subject.named.category}")
        assert f"{{{subject.named.category}}}" in subject.template
        assert subject.reference in subject.named.entity.images
        *others, judged = subject.samples
        assert others == sorted(others)
        areas = {
            one.category: split.mask(one).sum() for index, _, objects in split if index == judged for one in objects
        }
        assert max(areas, key=areas.get) == subject.named.category
    assert known_subjects(split, 1) == found[:1]


def test_pictures_of_a_subject_are_judged(split, instrument):
    for each in known_subjects(split, 4):
        # The real picture is the ceiling: it shows the subject, not what stands beside it.
        real = ScoreTable(SubjectScores.metrics)
        SubjectScores(each, split, instrument).add(real, [split.truth(each.samples[-1]).maps["rgb"]])
        assert real.compute()["category"] == 1.0
        assert real.compute()["distance"] < 0.1
    subject, other = known_subjects(split, 2)
    scores, table = SubjectScores(subject, split, instrument), ScoreTable(SubjectScores.metrics)
    true = split.truth(subject.samples[-1]).maps["rgb"]
    scores.add(table, [scores.known[-1], scores.known[-1]])
    computed = table.compute()
    assert (computed["category"], computed["nearest"], computed["num_samples"]) == (1.0, 0.0, 2)
    assert computed["distance"] < 0.2
    colour = true[split.mask(subject.named)].mean(axis=0) / 255
    assert np.allclose(scores.truth.colours[0], colour)
    strange = ScoreTable(SubjectScores.metrics)
    scores.add(strange, [SubjectScores(other, split, instrument).known[-1]])
    assert strange.compute()["category"] == 0.0
    assert strange.compute()["nearest"] > 0.05


def test_a_split_without_subjects_is_refused(make_dataset):
    samples = EvaluationSamples(make_dataset(2, 32, "test"), "test", get_modalities(["rgb", "depth"]), 32)
    split = PromptedSplit(samples, "test")
    with pytest.raises(UserError, match="no subject of the split has 3 pictures"):
        known_subjects(split, 1)
