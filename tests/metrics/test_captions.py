"""What a captioner says, judged: against hand-made captions, and against its own words one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_multimodal import save_captioner_of_captions

from mmdit.data.instructions import IMAGE_MARK, Instructions
from mmdit.data.prompts import Entity
from mmdit.encoders.captioner import load_captioner
from mmdit.metrics.captions import CaptionerEvaluation, judge_caption
from mmdit.sources.scenes.layout import CATEGORY_NAMES
from mmdit.sources.scenes.questions import COLOURS, kind_of, questions

THERE = [Entity(phrase, (None,)) for phrase in ("large red torus", "blue cone", "grey floor")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red torus left of a blue cone", {"categories": True, "colours": True}),
        ("a torus.", {"categories": True}),
        ("a red torus and a box", {"categories": False, "colours": True}),
        ("a blue torus behind a blue cone", {"categories": True, "colours": False}),
        ("a grey floor", {"categories": False}),
        ("", {"categories": False}),
    ],
)
def test_captions_against_what_is_there(text, expected):
    assert judge_caption(text, THERE, frozenset(CATEGORY_NAMES), COLOURS) == expected


def test_shares_are_those_of_what_the_model_says(prompt_folders, tmp_path):
    data = Instructions(prompt_folders.data, "train", questions, seed=0)
    save_captioner_of_captions(tmp_path / "captioner", data.texts)
    model, processor = load_captioner(str(tmp_path / "captioner"))
    for parameter in model.parameters():  # louder than they begin, so that pictures make a difference
        parameter.data.mul_(3)
    evaluation = CaptionerEvaluation(
        model, processor, data, kind_of=kind_of, nouns=CATEGORY_NAMES, colours=sorted(COLOURS), progress=False
    )
    report = evaluation.compute(6)
    found, control = report["captioner"], report["controls"]["shuffled"]
    assert {"caption.categories", "question.object_colour"} <= set(found)
    expected: dict[str, list[bool]] = {}
    for sample in data.samples[:6]:
        for text, answer in questions(sample):
            said = _said(model, processor, f"{IMAGE_MARK} {text}", data.picture(sample), answer)
            expected.setdefault(kind_of(text), []).append(said)
    for kind, values in expected.items():
        assert found[f"question.{kind}"]["count"] == len(values) == control[f"question.{kind}"]["count"]
        assert found[f"question.{kind}"]["right"] == pytest.approx(np.mean(values))


def _said(model, processor, text, picture, answer) -> bool:
    """Whether the likeliest words behind a text, taken one by one, are the answer's, and the end."""
    tokenizer = processor.tokenizer
    wanted = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    inputs = dict(processor(text=[text], images=[[picture]], return_tensors="pt"))
    ids = inputs["input_ids"][:, :-1]  # without the mark of the end
    for word in wanted:
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if int(model(**inputs, use_cache=False).logits[0, -1].argmax()) != word:
            return False
        ids = torch.cat([ids, torch.tensor([[word]])], dim=1)
    return True


def test_kinds_of_questions(prompt_folders):
    data = Instructions(prompt_folders.data, "train", questions, seed=0)
    kinds = {kind_of(text) for sample in data.samples for text, _ in questions(sample)}
    assert kinds <= {"object_colour", "ground_colour", "relation"}
    assert kind_of("what colour is the floor?") == "ground_colour"
    assert kind_of("what colour is the cone?") == "object_colour"
    assert kind_of("what is left of the cone?") == "relation"
