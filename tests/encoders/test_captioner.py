"""The small multimodal LLM: its loss by hand, and that it learns to say what it is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.data.manifest import read_dataset_info, read_manifest
from mmdit.encoders.captioner import (
    IGNORED,
    MARKS,
    CaptionerObjective,
    load_captioner,
    make_captioner,
    save_captioner,
    say,
)
from mmdit.encoders.multimodal import MultimodalEncoder
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.encoders.vocabulary import word_tokenizer
from mmdit.errors import UserError
from mmdit.modalities.rgb import read_picture
from mmdit.pipelines.loading import ASSETS
from mmdit.prompt import parse

SIZES = {"patch_size": 8, "scale_factor": 2, "vision_hidden_size": 16, "vision_depth": 1, "vision_num_heads": 2}
TEXT_SIZES = {"hidden_size": 24, "depth": 2, "num_heads": 2}


def _picture(*colour: int) -> Image.Image:
    return Image.fromarray(np.full((32, 32, 3), colour, dtype=np.uint8))


@pytest.fixture
def made():
    tokenizer = word_tokenizer(["a red blue torus cone left of that is what colour the ?"], MARKS, max_length=48)
    torch.manual_seed(0)
    return make_captioner(tokenizer, 32, **SIZES, **TEXT_SIZES)


@pytest.fixture
def batch():
    return {
        "kind": ["caption", "question", "prompt", "prompt"],
        "turns": [
            [("<image>", "a red torus")],
            [
                ("<image> what colour is the torus?", "blue"),
                ("what is left of the cone?", "blue torus"),
                ("what?", "cone"),
            ],
            [("a <image> left of a <image> that is", "a red torus left of a blue cone")],
            [("a cone that is", "a cone")],
        ],
        "names": [["red torus"], ["blue torus red cone"], ["red torus", "blue cone"], []],
        "pictures": [[_picture(200, 0, 0)], [_picture(0, 0, 200)], [_picture(200, 0, 0), _picture(0, 0, 200)], []],
    }


def test_answers_are_found_in_the_sequence(made, batch):
    _, processor = made
    inputs, numbers = CaptionerObjective(processor).inputs(batch["turns"], batch["pictures"])
    number = 0
    for row, turns in enumerate(batch["turns"]):
        for turn, (_, answer) in enumerate(turns, start=1):
            ids = inputs["input_ids"][row][numbers[row] == number]
            assert processor.tokenizer.decode(ids) == (f"{answer} <eos>" if turn == len(turns) else answer)
            number += 1
    assert set(numbers.flatten().tolist()) == {IGNORED, *range(number)}
    assert (numbers[inputs["attention_mask"] == 0] == IGNORED).all()


def test_loss_by_hand(made, batch):
    """Example by example, each on its own, without padding."""
    model, processor = made
    model.eval()
    objective = CaptionerObjective(processor)
    with torch.no_grad():
        losses = objective(model, batch)
        alone = []
        for turns, pictures in zip(batch["turns"], batch["pictures"], strict=True):
            inputs, numbers = objective.inputs([turns], [pictures])
            logits, ids = model(**inputs).logits[0].log_softmax(-1), inputs["input_ids"][0]
            terms = [
                torch.stack([-logits[i - 1, ids[i]] for i in (numbers[0] == number).nonzero()[:, 0]]).mean()
                for number in range(len(turns))
            ]
            alone.append(torch.stack(terms).mean())
        terms = []
        for names, pictures in zip(batch["names"], batch["pictures"], strict=True):
            for words, picture in zip(names, pictures, strict=True):
                pixels = processor.image_processor([[picture]], return_tensors="pt")["pixel_values"]
                tokens = model.model.get_image_features(pixels).pooler_output[0]
                likely = (tokens.mean(0) @ model.lm_head.weight.T).log_softmax(-1)
                terms.append(
                    -likely[list(set(processor.tokenizer(words, add_special_tokens=False)["input_ids"]))].mean()
                )
    (names, num_names), (prompt, num_prompts) = losses["names"], losses["prompt"]
    torch.testing.assert_close(names, torch.stack(terms).mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses["loss"], torch.stack(alone).mean() + names, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prompt, (alone[2] + alone[3]) / 2, atol=1e-4, rtol=1e-4)
    assert (num_names, num_prompts) == (len(terms), 2)
    kinds = {"caption", "question", "prompt"}
    assert set(losses) == {"loss", "names"} | kinds | {f"{kind}_right" for kind in kinds}


def test_it_learns_what_it_is_told(made, batch, tmp_path):
    model, processor = made
    objective = CaptionerObjective(processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective(model, batch)["loss"].backward()
        optimizer.step()
    model.eval()
    losses = objective(model, batch)
    assert all(losses[f"{kind}_right"][0] == 1 for kind in ("caption", "question", "prompt"))
    for turns, pictures in zip(batch["turns"], batch["pictures"], strict=True):
        text = " ".join([said for turn in turns for said in turn][:-1])
        assert say(model, processor, text, pictures) == turns[-1][1]
    save_captioner(tmp_path, model, processor)
    encoder = MultimodalEncoder.load(str(tmp_path))
    encoded = encoder([parse("a {gizmo} left of a cone", [_picture(200, 0, 0)])])
    assert (encoded.subjects == 0).sum() == 4
    assert say(encoder.model, encoder.processor, "<image>", [_picture(200, 0, 0)]) == "a red torus"


def test_a_teacher_lends_its_eyes():
    torch.manual_seed(0)
    teacher = SceneTeacher(3, 4, 32, patch_size=8, hidden_size=16, depth=2, num_heads=2).eval()
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokenizer = word_tokenizer(["a cone"], MARKS, max_length=32)
    model, processor = make_captioner(tokenizer, 32, scale_factor=2, **TEXT_SIZES, teacher=teacher)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = processor.image_processor([[picture]], return_tensors="pt")["pixel_values"][0]  # (1, 3, 32, 32)
    with torch.no_grad():
        patches = model.model.vision_model(pixels).last_hidden_state
        expected = torch.nn.functional.layer_norm(teacher.features(pixels), (16,), eps=1e-6)
    torch.testing.assert_close(patches, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"captioner.teacher reads 32 pixels, captioner.image_size is 64"):
        make_captioner(tokenizer, 64, teacher=teacher)


def test_sizes_that_do_not_divide():
    tokenizer = word_tokenizer(["a cone"], MARKS)
    with pytest.raises(UserError, match="image_size 40 is not a multiple of patch_size x scale_factor = 8 x 4"):
        make_captioner(tokenizer, 40)
    with pytest.raises(UserError, match="vision_hidden_size 160 is not a multiple of its 3 heads"):
        make_captioner(tokenizer, 64, vision_num_heads=3)


def test_the_bundled_one_names_what_it_sees_and_reads_prompts():
    folder = str(ASSETS / "scenes64_captioner")
    model, processor = load_captioner(folder)
    info = read_dataset_info(ASSETS / "scenes64_examples")
    right, pictures = [], []
    for sample in read_manifest(info, "test"):
        pictures.append(Image.fromarray(read_picture(sample.files["rgb"])))
        right.append(info.categories[sample.category] in say(model, processor, "<image>", pictures[-1:]).split())
    assert len(right) == 10
    assert sum(right) >= 7
    assert say(model, processor, "<image> what colour is the wall?", pictures[5:6]) == "blue"
    encoder = MultimodalEncoder.load(folder)
    encoded = encoder([parse("a {torus} left of a cone", {"torus": pictures[9]}), parse("a red torus")])
    assert int((encoded.subjects[0] >= 0).sum()) == 16  # tokens of the picture
    assert encoded.states.isfinite().all()
