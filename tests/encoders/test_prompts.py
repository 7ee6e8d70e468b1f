"""Text and subjects through tiny models of CLIP's own classes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_encoders import make_bert, make_tokenizer, save_clip
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from mmdit.encoders.prompts import (
    PromptEncoder,
    SubjectEncoder,
    load_prompt_encoder,
    make_prompt_encoder,
    subject_image,
)
from mmdit.encoders.subjects import load_image_encoder
from mmdit.encoders.text import load_text_encoder
from mmdit.errors import UserError
from mmdit.models.tiue import PromptInputs, TIUEConditioner
from mmdit.prompt import parse


def _picture(seed: int, size: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def subjects() -> SubjectEncoder:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=6,
    )  # fmt: skip
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return SubjectEncoder(CLIPVisionModelWithProjection(config), processor)


@pytest.fixture(scope="module")
def encoder(subjects) -> PromptEncoder:
    return PromptEncoder(make_bert(), subjects, max_subjects=2)


def test_encoded(encoder):
    one, two = _picture(0), _picture(1)
    prompts = [parse("a {torus} left of a {cone}", [one, two]), None, parse("a red cone")]
    encoded = encoder(prompts)
    assert encoded.present.tolist() == [True, False, True]
    torch.testing.assert_close(encoded.subject_embeddings[1], encoder.subjects([two])[0])
    assert (encoded.subjects >= 0).sum(1).tolist() == [2, 0, 0]
    alone = encoder([prompts[2]])
    torch.testing.assert_close(encoded.states[2, : alone.states.shape[1]], alone.states[0], atol=1e-6, rtol=1e-5)


def test_a_subject_changes_its_own_sample_alone(encoder):
    """Another picture for the torus: only the state at "torus" changes, and no other sample's."""
    conditioner = TIUEConditioner(3, 8, text_width=encoder.text.width, image_width=6)
    conditioner.reset_parameters()
    for parameter in conditioner.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    labels = torch.tensor([-1, -1])
    out = []
    for seed in (0, 5):
        encoded = encoder([parse("a {torus} left of a cone", [_picture(seed)]), parse("a {cone}", [_picture(9)])])
        with torch.no_grad():
            out.append(conditioner(PromptInputs(labels, encoded)))
    changed = (out[0].tokens - out[1].tokens).abs().amax(-1) > 1e-6
    assert changed.nonzero().tolist() == [[0, 2]]


def test_a_mask_hides_what_is_around_the_subject():
    picture, mask = _picture(0), np.zeros((20, 20), dtype=bool)
    mask[5:9, 5:9] = True
    cut = np.asarray(subject_image((picture, mask)))
    assert (cut[~mask] == 255).all()
    assert (cut[mask] == np.asarray(picture)[mask]).all()
    for same in (Image.fromarray(mask), torch.from_numpy(mask).bfloat16(), mask.tolist()):
        assert np.array_equal(cut, np.asarray(subject_image((picture, same))))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 1), (1, 3), (3, 9)])
def test_no_side_of_a_picture_is_taken_for_its_channels(subjects, size, caplog, monkeypatch):
    """Such a square is what the largest one of a narrow floor may be; what is read of it is what is read of it enlarged."""
    colours = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        read = subjects.read([picture, picture.resize((size[0] * 4, size[1] * 4), Image.Resampling.NEAREST)])
    torch.testing.assert_close(read[0], read[1])
    assert not caplog.records


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (50, 3), (1, 100)])
def test_tiny_and_narrow_images_are_subjects(encoder, size):
    assert encoder([parse("a {torus}", [Image.new("RGB", size)])]).subject_embeddings.isfinite().all()


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (lambda: parse("a {torus}", ["torus.png"]), "a subject is a str"),
        (lambda: parse("a {torus}", [(_picture(0), np.ones((3, 3)))]), "mask has shape (3, 3), its image is 20 x 20"),
        (lambda: parse("a {torus}", [(_picture(0), np.zeros((20, 20)))]), "mask is empty"),
        (lambda: parse("a {torus}", [(_picture(0), "mask.png")]), "mask is a str without numbers"),
        (lambda: parse("a {torus}", [(_picture(0), [[1], [1, 0]])]), "mask is a list without numbers"),
        (lambda: parse("a {torus}", [Image.new("RGB", (1, 101))]), "image is 1 x 101 pixels"),
        (lambda: parse("{torus} {cone} {cone}", [_picture(i) for i in range(3)]), "has 3 subjects, the model takes 2"),
    ],
)
def test_bad_subjects(encoder, prompt, told):
    with pytest.raises(UserError) as error:
        encoder([prompt()])
    assert told in str(error.value)


def test_images_for_a_model_of_text(subjects):
    with pytest.raises(UserError, match="takes no subjects' images"):
        PromptEncoder(make_bert())([parse("a {torus}", [_picture(0)])])


def test_one_clip_folder_serves_text_and_images(tmp_path):
    """The same embeddings as the whole model's own, from one folder or from two."""
    model = save_clip(tmp_path).eval()
    encoder = load_prompt_encoder("tiue", str(tmp_path))
    picture = _picture(0)
    pixels = encoder.subjects.processor(images=picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixels).pooler_output)
    torch.testing.assert_close(encoder.subjects([picture]), expected)
    tokens = encoder.text.tokenize([parse("a red torus")])
    with torch.no_grad():
        states = model.text_model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    torch.testing.assert_close(encoder.text(tokens).states, states)
    apart = load_prompt_encoder("tiue", str(tmp_path), str(tmp_path))
    assert torch.equal(apart.subjects([picture]), encoder.subjects([picture]))
    assert set(encoder.components) == {"text_encoder", "tokenizer", "image_encoder", "image_processor"}
    again = make_prompt_encoder("tiue", encoder.components)
    assert torch.equal(again.text(tokens).states, encoder.text(tokens).states)
    assert encoder.widths == {"text_width": 16, "image_width": 6}
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_text_encoder_alone(tmp_path):
    make_bert().model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    encoder = load_prompt_encoder("tiue", str(tmp_path))
    assert encoder.subjects is None
    assert set(encoder.components) == {"text_encoder", "tokenizer"}
    with pytest.raises(UserError, match=r"image encoder .* is a 'bert': give a CLIP model"):
        load_prompt_encoder("tiue", str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("load", [load_text_encoder, load_image_encoder])
def test_an_unreachable_hub_says_what_is_needed(load, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        load("someone/encoder")
    for part in ("'someone/encoder' can't be fetched", "the Hub can't be reached", "config.json", "hf download"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    save_clip(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    for name in ("visual_projection.weight", "text_model.final_layer_norm.weight"):
        save_file({key: value for key, value in weights.items() if key != name}, path, metadata={"format": "pt"})
        load = load_image_encoder if name.startswith("visual") else load_text_encoder
        with pytest.raises(UserError, match=f"its weights lack 1 tensors, first '{name.removeprefix('text_model.')}'"):
            load(str(tmp_path))


def test_check_is_forward_without_networks(encoder):
    encoder.check([parse("a red {torus}", [_picture(0)]), None])
    for prompt in (parse("a torrus"), parse("a {torus}", ["x.png"]), parse("{} {} {}", [_picture(0)] * 3)):
        with pytest.raises(UserError):
            encoder.check([prompt])


def test_repeated_prompts(encoder):
    prompts = [parse("a {torus}", [_picture(0)]), parse("a red cone left of a {cone}", [_picture(1)])]
    encoded = encoder(prompts)
    twice = encoded.repeat(2)
    words = torch.randn(2, encoder.text.width)
    assert torch.equal(twice.restate(words), encoded.restate(words)[[0, 0, 1, 1]])
    assert torch.equal(twice.states, encoded.states[[0, 0, 1, 1]])
    moved = encoded.to(dtype=torch.float64)
    assert {moved.states.dtype, moved.subject_embeddings.dtype, moved.restate(words).dtype} == {torch.float64}
    assert moved.mask.dtype == torch.bool
