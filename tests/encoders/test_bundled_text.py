"""The bundled text encoder: which layer tells two objects' words apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from mmdit.encoders.text import TextEncoder
from mmdit.pipelines.loading import bundled_models
from mmdit.prompt import parse

COLOURS = ("red", "green", "blue", "yellow", "purple")
NOUNS = ("torus", "cone", "box", "sphere")


def explained(states: NDArray[np.float64], labels: list[str]) -> float:
    """Share of the states' variance (N, W) between the groups of a label."""
    centred = states - states.mean(0)
    groups = {label: centred[[each == label for each in labels]] for label in labels}
    return sum(len(group) * (group.mean(0) ** 2).sum() for group in groups.values()) / (centred**2).sum()


@pytest.mark.skipif("scenes64" not in bundled_models(), reason="the model is not bundled yet")
def test_the_second_objects_words_are_its_own_in_an_inner_layer():
    """``hidden_layer: 1`` of configs/umm_scenes64.yaml: there the last word is more of its own than of the first object."""
    from transformers import AutoTokenizer, CLIPTextModel

    folder = bundled_models()["scenes64"]
    words = [
        (*colours, *nouns)
        for colours, nouns in itertools.product(itertools.permutations(COLOURS, 2), itertools.permutations(NOUNS, 2))
    ]
    prompts = [parse(f"a {c1} {n1} left of a {c2} {n2}") for c1, c2, n1, n2 in words]
    model = CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    shares = {}
    for layer in (1, -1):
        encoder = TextEncoder(model, tokenizer, layer)
        tokens = encoder.tokenize(prompts)
        assert tokens.mask.all()
        last = encoder(tokens).states[:, -2].double().numpy()  # before the end of the text
        shares[layer] = {name: explained(last, [word[i] for word in words]) for i, name in enumerate(("first", "own"))}
    assert shares[1]["own"] > 2 * shares[1]["first"]
    assert shares[-1]["own"] < shares[-1]["first"]
