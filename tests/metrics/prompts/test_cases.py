import json
import re
from dataclasses import replace

import numpy as np
import pytest

from mmdit.data.prompts import CaptionedSample, Entity
from mmdit.errors import UserError
from mmdit.metrics.prompts.cases import PromptedSplit, article, captions_of, named, relation_in
from mmdit.metrics.prompts.kinds import KINDS, Contradiction, TwoSubjects
from mmdit.metrics.prompts.views import read_shown
from mmdit.metrics.samples import EvaluationSamples
from mmdit.names import GROUND_LEADS, RELATION_WORDS, STYLE_WORD
from mmdit.prompt import parse
from mmdit.sources.scenes.dataset import SEGMENTATION_CLASSES


@pytest.fixture
def lines(prompt_scenes):
    return {
        entry["id"]: entry
        for entry in map(json.loads, (prompt_scenes / "test" / "prompts.jsonl").read_text().splitlines())
    }


def test_relations_are_read_from_the_words_between():
    for name, sayings in RELATION_WORDS.items():
        for saying in sayings:
            assert relation_in(f" {saying} a small ") == name
    assert relation_in(" and a ") is None
    assert relation_in(" left of and behind ") is None
    assert relation_in(" beforehand ") is None


def test_articles():
    assert [article(word) for word in ("arch", "hourglass", "torus", "orange")] == ["an", "an", "a", "an"]


def test_what_captions_name(split, lines):
    seen = 0
    for index, sample, objects in split:
        line = lines[split.samples.samples[index].id]
        for caption in captions_of(sample, objects):
            seen += 1
            assert caption.text in line["captions"]
            for one, said in zip(caption.objects, caption.said, strict=True):
                assert re.search(rf"\b{one.category}\b", caption.text)
                assert said == bool(re.search(rf"\b{one.colour} {one.category}\b", caption.text))
            places = [caption.text.index(one.category) for one in caption.objects]
            assert places == sorted(places)
    assert seen > 100


def test_words_alone_ask_for_no_style(split):
    """ "In the style of the scene" means a picture; a street scene doesn't."""
    texts: dict[bool, list[str]] = {False: [], True: []}
    for _, sample, objects in split:
        for in_words, found in texts.items():
            found += [caption.text for caption in captions_of(sample, objects, in_words=in_words)]
    assert texts[True] == [text for text in texts[False] if GROUND_LEADS[STYLE_WORD] not in text]
    assert len(texts[True]) < len(texts[False])
    torus, text = Entity("red torus", ((2, 11),)), "a red torus in a street scene"
    street = CaptionedSample("0", (text,), (torus, Entity("street scene", ((17, 29),))))
    assert [one.text for one in captions_of(street, [named(torus)], in_words=True)] == [text]


def test_a_colour_of_the_floor_is_asked_for_where_the_words_say_it(split):
    asked = KINDS["text.floor"].cases(split, 100)
    unsaid = {case.sample for case in asked[::2]}

    def told_less(sample: CaptionedSample) -> CaptionedSample:
        ground = [each for each in sample.entities if each.noun == "floor"]
        cut = tuple(replace(each, spans=tuple(s and (s[1] - 5, s[1]) for s in each.spans)) for each in ground)
        return replace(sample, entities=(*(each for each in sample.entities if each.noun != "floor"), *cut))

    ids = {split.samples.samples[number].id for number in unsaid}
    split.prompts = {name: told_less(each) if name in ids else each for name, each in split.prompts.items()}
    left = KINDS["text.floor"].cases(split, 100)
    assert {case.sample for case in left} == {case.sample for case in asked} - unsaid


@pytest.mark.parametrize("name", sorted(KINDS))
def test_cases_ask_for_what_the_true_picture_shows(name, split):
    cases = KINDS[name].cases(split, 100)
    assert len(cases) >= 4
    for case in cases:
        line = split.prompts[split.samples.samples[case.sample].id]
        phrases = {entity.phrase for entity in line.entities}
        true = case.objects[:1] if name == "subject_recoloured" else case.objects
        assert {f"{one.colour} {one.category}" for one in true} <= phrases
        if name != "style.scene":
            assert GROUND_LEADS[STYLE_WORD] not in case.template, "of a scene that no picture shows"
        prompt = parse(case.template, case.subjects)
        assert len(prompt.images) == (0 if case.in_words else len(case.references))
        own = split.truth(case.sample).maps["rgb"]
        assert all(not np.array_equal(read_shown(each), own) for each in case.references), "another picture"
        if name.startswith("subject") and not case.in_words:
            for one, shown in zip(true, case.references, strict=name != "subject_beside_words"):
                assert getattr(shown, "path", shown) in one.entity.images
                assert one.colour not in prompt.text.split(), "a subject's colour is its picture's to say"
    assert KINDS[name].cases(split, 3) == cases[:3]


def test_pairs_have_two_categories_and_a_relation(split):
    for name in ("text.two", "subjects.two", "subject_beside_words"):
        for case in KINDS[name].cases(split, 100):
            first, second = case.objects
            assert first.category != second.category
            assert relation_in(case.template) == case.relation
            assert case.template.index(first.category) < case.template.index(second.category)


def test_subjects_come_in_turn(split):
    cases = KINDS["subject"].cases(split, 8)
    assert len({case.references for case in cases[:4]}) == 4, "two blocks have four subjects"
    assert all(case.others != case.references for case in cases), "those with a further picture come first"
    assert {case.template for case in cases} == {"a {}"}
    named = KINDS["subject_named"].cases(split, 8)
    assert [case.references for case in named] == [case.references for case in cases]
    assert all(case.template in (f"a {{{c}}}", f"an {{{c}}}") for case in named for c in [case.objects[0].category])


def test_contradictions_name_another_colour(split):
    for case in Contradiction().cases(split, 20):
        shown, asked = case.objects
        assert shown.colour != asked.colour
        assert f"{{{asked.colour} {shown.category}}}" in case.template
    for case in KINDS["subject_recoloured"].cases(split, 20):
        shown, asked = case.objects
        assert shown.colour != asked.colour
        assert f"{asked.colour} {{{shown.category}}}" in case.template, "the picture stands for the category alone"


def test_a_subject_stands_to_an_object_in_words(split):
    for case in KINDS["subject_beside_words"].cases(split, 20):
        subject, other = case.objects
        assert f"{{{subject.category}}}" in case.template
        assert case.template.endswith(f" {other.colour} {other.category}")
        assert len(case.references) == 1


def test_masks_and_foreground(split):
    number_of = {entry["name"]: entry["id"] for entry in SEGMENTATION_CLASSES}
    for case in TwoSubjects().cases(split, 4):
        truth = split.truth(case.sample)
        masks = [split.mask(one) for one in case.objects]
        for one, mask in zip(case.objects, masks, strict=True):
            ids = set(truth.maps["segmentation"][mask].tolist())
            assert ids == {number_of[one.category]}
        assert np.array_equal(split.foreground(case.sample), truth.maps["segmentation"] > 1)


def test_a_split_without_captions_is_empty_and_a_bad_line_is_named(make_dataset):
    root = make_dataset(2, 32, "test")
    samples = EvaluationSamples(root, "test", split_modalities(), 32)
    assert not PromptedSplit(samples, "test")
    (root / "test" / "prompts.jsonl").write_text('{"id": "000", "captions": []}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl.*'captions' is \[\]"):
        PromptedSplit(samples, "test")


def split_modalities():
    from mmdit.modalities import get_modalities

    return get_modalities(["rgb", "segmentation"])
