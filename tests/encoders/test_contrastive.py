"""Our CLIP model: its loss against one written out, its image tower against the teacher that it starts from."""

from __future__ import annotations

import math

import pytest
import torch

from mmdit.encoders.contrastive import (
    ContrastiveObjective,
    Texts,
    freeze_text,
    image_processor,
    make_clip,
    symmetric_loss,
)
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.encoders.vocabulary import word_tokenizer
from mmdit.errors import UserError

CAPTIONS = ["a red torus", "a blue cone", "a red torus"]
SIZES = {"patch_size": 8, "hidden_size": 16, "depth": 2, "num_heads": 2, "projection_dim": 12}


@pytest.fixture
def tokenizer():
    return word_tokenizer(CAPTIONS, max_length=8)


@pytest.fixture
def teacher() -> SceneTeacher:
    torch.manual_seed(1)
    return SceneTeacher(3, 4, 16, patch_size=8, hidden_size=20, depth=3, num_heads=2).eval()


def test_symmetric_loss_by_hand():
    """Row 0 has two right answers, which share the target."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    same = torch.tensor([[True, True], [False, True]])

    def cross_entropy(values, targets):
        total = math.log(sum(math.exp(v) for v in values))
        return sum(t * (total - v) for v, t in zip(values, targets, strict=True))

    rows = (cross_entropy([2, 0], [0.5, 0.5]) + cross_entropy([1, 3], [0, 1])) / 2
    columns = (cross_entropy([2, 1], [1, 0]) + cross_entropy([0, 3], [0.5, 0.5])) / 2
    assert float(symmetric_loss(logits, same)) == pytest.approx((rows + columns) / 2)


def test_equal_captions_are_no_negatives(tokenizer):
    torch.manual_seed(0)
    model = make_clip(tokenizer, 16, **SIZES).eval()
    rgb, pairs = torch.rand(3, 3, 16, 16) * 2 - 1, torch.rand(2, 2, 3, 16, 16) * 2 - 1
    texts = Texts.read(CAPTIONS, tokenizer, torch.device("cpu"))
    tokens = texts.tokens
    with torch.no_grad():
        losses = ContrastiveObjective(0.5)(model, rgb, texts, pairs)
        output = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=rgb)
        one, other = (model(**tokens, pixel_values=pairs[:, i]).image_embeds for i in (0, 1))
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    assert float(losses["text"]) == pytest.approx(float(symmetric_loss(output.logits_per_image, same)), rel=1e-5)
    scale = model.logit_scale.exp()
    subject = symmetric_loss(scale * one @ other.T, torch.eye(2, dtype=torch.bool))
    assert float(losses["subject"][0]) == pytest.approx(float(subject.detach()), rel=1e-5)
    assert losses["subject"][1] == 2
    assert float(losses["loss"]) == pytest.approx(float(losses["text"] + 0.5 * losses["subject"][0]), rel=1e-6)
    right = [bool(same[i, int(row.argmax())]) for i, row in enumerate(output.logits_per_image)]
    assert float(losses["accuracy"]) == pytest.approx(sum(right) / 3)
    assert "subject" not in ContrastiveObjective()(model, rgb, texts)


@torch.no_grad()
def test_subjects_against_their_names(tokenizer):
    """Both pictures of a subject against all names; equal names are right answers for each other's pictures."""
    torch.manual_seed(0)
    model = make_clip(tokenizer, 16, **SIZES).eval()
    rgb, pairs = torch.rand(3, 3, 16, 16) * 2 - 1, torch.rand(3, 2, 3, 16, 16) * 2 - 1
    texts = Texts.read(CAPTIONS, tokenizer, torch.device("cpu"))
    losses = ContrastiveObjective(0.5, 0.25)(model, rgb, texts, pairs, texts)
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    expected = [symmetric_loss(model(**texts.tokens, pixel_values=pairs[:, i]).logits_per_image, same) for i in (0, 1)]
    (subject, _), (name, count) = losses["subject"], losses["name"]
    assert float(name) == pytest.approx(float(sum(expected) / 2), rel=1e-5)
    assert count == 3
    total = losses["text"] + 0.5 * subject + 0.25 * name
    assert float(losses["loss"]) == pytest.approx(float(total), rel=1e-6)


def test_text_tower_frozen_up_to_a_layer(tokenizer):
    model = make_clip(tokenizer, 16, **SIZES)
    freeze_text(model, 1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    text = {name for name in trained if name.startswith("text")}
    assert {name.split(".")[1] for name in text} == {"encoder", "final_layer_norm", "weight"}
    assert {name.split(".")[3] for name in text if ".layers." in name} == {"1"}
    with pytest.raises(UserError, match=r"clip\.freeze_text_layers is 3: the text tower has 2"):
        freeze_text(model, 3)
    freeze_text(model)
    assert not [
        name for name, parameter in model.named_parameters() if name.startswith("text") and parameter.requires_grad
    ]


@torch.no_grad()
def test_image_tower_starts_as_the_teacher(tokenizer, teacher):
    """Its layers on the teacher's tokens give the teacher's features, and its tokens are the teacher's, behind one more."""
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = make_clip(tokenizer, 16, **SIZES, teacher=teacher).eval()
    assert model.config.vision_config.hidden_size == 20
    assert model.config.text_config.hidden_size == 16
    rgb = torch.rand(2, 3, 16, 16) * 2 - 1
    tokens = teacher.vit.patch_embed(rgb) + teacher.vit.pos_embed
    torch.testing.assert_close(model.vision_model.embeddings(rgb)[:, 1:], tokens)
    for layer in model.vision_model.encoder.layers:
        output = layer(tokens, attention_mask=None)
        tokens = output if isinstance(output, torch.Tensor) else output[0]
    torch.testing.assert_close(tokens, teacher.features(rgb), atol=1e-5, rtol=1e-5)


def test_sizes_that_do_not_fit(tokenizer, teacher):
    with pytest.raises(UserError, match=r"clip\.patch_size 8 does not divide images of 20 pixels"):
        make_clip(tokenizer, 20, **SIZES)
    with pytest.raises(UserError, match=r"clip\.hidden_size 16 is not a multiple of clip.num_heads 3"):
        make_clip(tokenizer, 16, **{**SIZES, "num_heads": 3})
    with pytest.raises(UserError, match=r"clip\.teacher reads 16 pixels, clip.image_size is 32"):
        make_clip(tokenizer, 32, **SIZES, teacher=teacher)


def test_processor_maps_pixels_as_the_rgb_codec_does():
    from PIL import Image

    image = Image.new("RGB", (16, 16), (0, 128, 255))
    pixels = image_processor(16)(images=[image], return_tensors="pt")["pixel_values"]
    expected = torch.tensor([0, 128, 255]) / 127.5 - 1
    torch.testing.assert_close(pixels[0], expected[:, None, None].expand(3, 16, 16), atol=1e-6, rtol=0)
