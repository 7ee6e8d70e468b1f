"""Text and subjects through tiny models of CLIP's own classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoders import make_bert
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from mmdit.encoders.prompts import PromptEncoder, SubjectEncoder, subject_image
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
    assert np.array_equal(cut, np.asarray(subject_image((picture, Image.fromarray(mask)))))


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (lambda: parse("a {torus}", ["torus.png"]), "a subject is a str"),
        (lambda: parse("a {torus}", [(_picture(0), np.ones((3, 3)))]), "mask has shape (3, 3), its image is 20 x 20"),
        (lambda: parse("a {torus}", [(_picture(0), np.zeros((20, 20)))]), "mask is empty"),
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
