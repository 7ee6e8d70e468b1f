"""Frozen text encoders: tiny models of the real classes, made here and saved to disk."""

from __future__ import annotations

import threading

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from mmdit.encoders.text import NO_SUBJECT, TextEncoder, load_text_encoder
from mmdit.errors import UserError
from mmdit.prompt import parse

WORDS = ["a", "red", "blue", "torus", "cone", "left", "of", "in", "front", "object", "tor", "##us"]
SPECIAL = ["<pad>", "<s>", "<unk>", "</s>"]
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}


def _tokenizer(pieces: bool = False) -> PreTrainedTokenizerFast:
    """By whole words, or with "torus" in two pieces."""
    words = {word: i for word, i in VOCABULARY.items() if word != "torus"} if pieces else VOCABULARY
    model = WordPiece(words, unk_token="<unk>") if pieces else WordLevel(words, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
    )


def _model(kind: str):
    torch.manual_seed(0)
    size = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "clip":
        return CLIPTextModel(CLIPTextConfig(**size, **layers, max_position_embeddings=16))
    if kind == "bert":
        return BertModel(BertConfig(**size, **layers, max_position_embeddings=16))
    return T5EncoderModel(T5Config(vocab_size=len(VOCABULARY), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


@pytest.fixture(scope="module", params=["bert", "t5"])
def encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    _model(request.param).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return load_text_encoder(str(folder))


def _clip() -> TextEncoder:
    return TextEncoder(_model("clip"), _tokenizer())


def _bert() -> TextEncoder:
    return TextEncoder(_model("bert"), _tokenizer())


def test_states_and_pooled(encoder):
    tokens = encoder.tokenize([parse("a red torus"), parse("a blue cone left of a torus")])
    assert tokens.ids.shape == (2, 9)
    assert tokens.mask.sum(1).tolist() == [5, 9]
    out = encoder(tokens)
    assert out.states.shape == (2, 9, encoder.width)
    torch.testing.assert_close(out.pooled[0], out.states[0, :5].mean(0))
    assert not out.states.requires_grad


@pytest.mark.parametrize(
    "make", [_clip, _bert, lambda: TextEncoder(_model("t5"), _tokenizer())], ids=["clip", "bert", "t5"]
)
def test_independent_of_padding_and_batch_mates(make):
    encoder = make()
    alone = encoder(encoder.tokenize([parse("a red torus")]))
    among = encoder(
        encoder.tokenize([parse("a red torus"), parse("a blue cone left of a red torus in front of a cone")])
    )
    torch.testing.assert_close(among.states[0, : alone.states.shape[1]], alone.states[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(among.pooled[0], alone.pooled[0], atol=1e-6, rtol=1e-5)


def test_clip_pools_the_end_of_the_text(tmp_path):
    _clip().model.save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    out = encoder(encoder.tokenize([parse("a red torus"), parse("a cone left of a cone")]))
    torch.testing.assert_close(out.pooled[0], out.states[0, 4])


def test_tokens_of_subjects_are_counted_over_the_batch():
    encoder = _bert()
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
    encoder = TextEncoder(_model("bert"), _tokenizer(pieces=True))
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
    encoder = _bert()
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
        _bert().tokenize([parse(text)])


def test_an_unknown_word_names_the_nearest():
    with pytest.raises(UserError, match=r"doesn't know 'torrus'; nearest are torus"):
        _bert().tokenize([parse("a torrus")])


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(UserError, match="not a fast one"):
        TextEncoder(_model("bert"), object())


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere"])
def test_a_missing_encoder_is_one_line(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="can't be loaded") as error:
        load_text_encoder(name)
    assert "\n" not in str(error.value)
