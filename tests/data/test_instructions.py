"""Examples for a multimodal LLM: drawn by position, with an image for every mark."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmdit.data.instructions import CAPTION, IMAGE_MARK, KINDS, MAX_TURNS, PROMPT, QUESTION, READ_OUT, Instructions
from mmdit.errors import UserError
from mmdit.prompt import mirror_text
from mmdit.sources.scenes.questions import questions


@pytest.fixture(scope="module")
def train(prompt_folders) -> Instructions:
    return Instructions(prompt_folders.data, "train", questions, seed=5, mirrored=True)


def test_every_kind_comes_up_and_every_mark_has_its_image(train):
    assert len(train) == 32
    batch = train.read_batch(list(range(32)) * 4, list(range(128)))
    assert set(Counter(batch["kind"])) == set(KINDS)
    for kind, turns, pictures, names in zip(*(batch[k] for k in ("kind", "turns", "pictures", "names")), strict=True):
        text, answer = turns[0]
        assert len(names) == len(pictures)
        assert text.count(IMAGE_MARK) == len(pictures)
        assert not any(IMAGE_MARK in said for pair in turns for said in (pair[1], *pair[:1] * (pair != turns[0])))
        assert 1 <= len(turns) <= (MAX_TURNS if kind == QUESTION else 1)
        assert all(picture.mode == "RGB" for picture in pictures)
        if kind == CAPTION:
            assert text == IMAGE_MARK
        if kind == QUESTION:
            assert all(text.endswith("?") for text, _ in turns)
            assert len(set(turns)) == len(turns)
        if kind == PROMPT:
            assert text.endswith(f" {READ_OUT}")
            if not pictures:
                assert text == f"{answer} {READ_OUT}"


def test_what_is_said_is_true(train):
    for position in range(200):
        example = train._example(position % 16, position)
        sample = train.samples[position % 16]
        assert example["id"] == sample.id
        if example["kind"] == CAPTION:
            assert example["turns"][0][1] in sample.captions
        elif example["kind"] == QUESTION:
            asked = [(text.removeprefix(f"{IMAGE_MARK} "), answer) for text, answer in example["turns"]]
            assert set(asked) <= set(questions(sample))
        else:  # a caption in which the words that are shown are those of the entity
            ((text, answer),) = example["turns"]
            words = text.removesuffix(f" {READ_OUT}").split(IMAGE_MARK)
            assert all(part in answer for part in words)
            assert sum(entity.phrase in answer for entity in sample.entities) >= len(words) - 1


def test_a_mirrored_image_has_mirrored_words(train):
    seen = 0
    for position in range(400):
        one, other = (train._example(index, position) for index in (position % 16, 16 + position % 16))
        if one["kind"] == PROMPT:
            assert one["turns"] == other["turns"]
            continue
        assert other["turns"] == [(mirror_text(text), mirror_text(answer)) for text, answer in one["turns"]]
        assert np.array_equal(np.asarray(one["pictures"][0])[:, ::-1], np.asarray(other["pictures"][0]))
        seen += one["turns"] != other["turns"]
    assert seen > 0


def test_an_example_is_a_function_of_seed_and_position(train, prompt_folders):
    again = Instructions(prompt_folders.data, "train", questions, seed=5, mirrored=True)
    one, other = train.read_batch([3, 4], [10, 11]), again.read_batch([4], [11])
    assert {k: v[1] for k, v in one.items() if k != "pictures"} == {
        k: v[0] for k, v in other.items() if k != "pictures"
    }
    assert train.read_batch([3] * 20, range(20))["turns"] != train.read_batch([3] * 20, range(20, 40))["turns"]


def test_texts_hold_every_word(train):
    known = {word for text in train.texts for word in text.lower().replace("?", " ?").split()} | {IMAGE_MARK}
    for position in range(200):
        example = train._example(position % 32, position)
        said = " ".join(f"{text} {answer}" for text, answer in example["turns"])
        assert set(said.lower().replace("?", " ?").split()) <= known


def test_a_split_without_captions_is_refused(make_dataset):
    with pytest.raises(UserError, match=r"prompts\.jsonl: has no captions of samples with rgb"):
        Instructions(make_dataset(2), "train", questions, seed=0)
