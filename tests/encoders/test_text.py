"""Frozen text encoders: tiny models of the real classes, made here and saved to disk."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny_encoders import VOCABULARY, make_bert, make_clip, make_model, make_tokenizer

from mmdit.conditioning import NO_SUBJECT
from mmdit.encoders.text import TextEncoder, load_text_encoder
from mmdit.errors import UserError
from mmdit.prompt import parse


@pytest.fixture(scope="module", params=["bert", "t5"])
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_model(request.param).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load_text_encoder(str(folder))


def test_states_and_pooled(encoder):
    tokens = encoder.tokenize([parse("a red torus"), parse("a blue cone left of a torus")])
    assert tokens.ids.shape == (2, 9)
    assert tokens.mask.sum(1).tolist() == [5, 9]
    out = encoder(tokens)
    assert out.states.shape == (2, 9, encoder.width)
    torch.testing.assert_close(out.pooled[0], out.states[0, :5].mean(0))
    assert not out.states.requires_grad


@pytest.mark.parametrize(
    "make", [make_clip, make_bert, lambda: TextEncoder(make_model("t5"), make_tokenizer())], ids=["clip", "bert", "t5"]
)
def test_independent_of_padding_and_batch_mates(make):
    encoder = make()
    alone = encoder(encoder.tokenize([parse("a red torus")]))
    among = encoder(
        encoder.tokenize([parse("a red torus"), parse("a blue cone left of a red torus in front of a cone")])
    )
    torch.testing.assert_close(among.states[0, : alone.states.shape[1]], alone.states[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(among.pooled[0], alone.pooled[0], atol=1e-6, rtol=1e-5)


def testmake_clip_pools_the_end_of_the_text(tmp_path):
    make_clip().model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    out = encoder(encoder.tokenize([parse("a red torus"), parse("a cone left of a cone")]))
    torch.testing.assert_close(out.pooled[0], out.states[0, 4])


@pytest.mark.parametrize("kind", ["clip", "bert", "t5"])
def test_another_layer(kind, tmp_path):
    made = make_clip() if kind == "clip" else TextEncoder(make_model(kind), make_tokenizer())
    made.model.save_pretrained(tmp_path / "first")
    made.tokenizer.save_pretrained(tmp_path / "first")
    tokens = made.tokenize([parse("a red torus left")])
    with torch.no_grad():
        output = made.model(tokens.ids, attention_mask=tokens.mask.long(), output_hidden_states=True)
    count = made.model.config.num_hidden_layers
    for layer in (0, 1, -2, count):
        other = load_text_encoder(str(tmp_path / "first"), layer)
        states = output.last_hidden_state if layer == count else output.hidden_states[layer]
        torch.testing.assert_close(other(tokens).states, states)
        torch.testing.assert_close(
            other(tokens).pooled, made(tokens).pooled if kind == "clip" else states[0].mean(0)[None]
        )
    other = load_text_encoder(str(tmp_path / "first"), 1)
    other.model.save_pretrained(tmp_path / "again")
    other.tokenizer.save_pretrained(tmp_path / "again")
    assert load_text_encoder(str(tmp_path / "again")).hidden_layer == 1, "the choice is saved with the model"
    with pytest.raises(UserError, match=f"hidden_layer is {count + 1}: the model has {count} layers, give"):
        load_text_encoder(str(tmp_path / "first"), count + 1)


def test_tokens_of_subjects_are_counted_over_the_batch():
    encoder = make_bert()
    prompts = [
        parse("a {torus} left of a {red cone}", ["x", "y"]),
        parse("a cone"),
        parse("{} in front of a {cone}", ["p", "q"]),
    ]
    subjects = encoder.tokenize(prompts).subjects
    n = NO_SUBJECT
    assert subjects[0].tolist() == [n, n, 0, n, n, n, 1, 1, n]
    assert set(subjects[1].tolist()) == {n}
    assert subjects[2].tolist() == [n, 2, n, n, n, n, 3, n, n][: subjects.shape[1]]


def test_a_word_of_two_pieces_has_its_subject_in_both():
    encoder = TextEncoder(make_model("bert"), make_tokenizer(pieces=True))
    tokens = encoder.tokenize([parse("a red {torus}", ["x"])])
    assert tokens.subjects[0].tolist() == [-1, -1, -1, 0, 0, -1]


def test_pseudo_words_stand_where_the_word_stood(encoder):
    """With the word's own embedding as pseudo-word nothing changes; with another one all states do."""
    tokens = encoder.tokenize([parse("a red {torus}", ["x"]), parse("a {cone}", ["y"])])
    table = encoder.model.get_input_embeddings().weight
    own = torch.stack([table[VOCABULARY["torus"]], table[VOCABULARY["cone"]]])
    plain = encoder(tokens)
    torch.testing.assert_close(encoder(tokens, own).states, plain.states)
    words = (own + 1).requires_grad_(True)
    changed = encoder(tokens, words)
    assert not torch.allclose(changed.states, plain.states)
    changed.pooled[0].square().sum().backward()
    assert words.grad[0].abs().sum() > 0
    assert words.grad[1].abs().sum() == 0  # the other prompt's
    assert all(p.grad is None for p in encoder.model.parameters())
    torch.testing.assert_close(encoder(tokens).states, plain.states)  # nothing is left behind


def test_threads_share_one_encoder():
    encoder = make_bert()
    tokens = encoder.tokenize([parse("a red {torus}", ["x"])])
    words = [torch.full((1, encoder.width), float(i)) for i in range(6)]
    alone = [encoder(tokens, w).states for w in words]
    found: dict[int, bool] = {}

    def work(i: int) -> None:
        with torch.no_grad():
            found[i] = all(torch.equal(encoder(tokens, words[i]).states, alone[i]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(words))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(len(words)), True)


def test_a_prompt_that_is_too_long_names_what_would_be_lost():
    text = "a red torus left of a blue cone in front of a red cone left of a torus"
    with pytest.raises(UserError, match=r"has 20 tokens, the text encoder reads 16: 'left of a torus' would be lost"):
        make_bert().tokenize([parse(text)])


def test_an_unknown_word_names_the_nearest():
    with pytest.raises(UserError, match=r"doesn't know 'torrus'; nearest are torus"):
        make_bert().tokenize([parse("a torrus")])


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(UserError, match="not a fast one"):
        TextEncoder(make_model("bert"), object())


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere"])
def test_a_missing_encoder_is_one_line(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="can't be loaded") as error:
        load_text_encoder(name)
    assert "\n" not in str(error.value)
