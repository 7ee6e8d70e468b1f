"""The tokenizer of whole words."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from mmdit.encoders.text import TextEncoder
from mmdit.encoders.vocabulary import word_tokenizer
from mmdit.errors import UserError
from mmdit.prompt import parse
from tests.tiny_encoders import make_model

TEXTS = ["A red torus, left of a blue cone.", "the cone is large"]


def test_words_are_lower_case_and_punctuation_is_apart():
    tokenizer = word_tokenizer(TEXTS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the Red CONE.").input_ids) == [
        "<bos>", "the", "red", "cone", ".", "<eos>",
    ]  # fmt: skip
    assert tokenizer.convert_ids_to_tokens(tokenizer("cone.,green").input_ids) == [
        "<bos>", "cone", ".", ",", "<unk>", "<eos>",
    ]  # fmt: skip
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    assert tokenizer.eos_token_id != 2, "CLIP would pool elsewhere"
    assert tokenizer.is_fast
    assert tokenizer.decode(tokenizer("a red torus").input_ids, skip_special_tokens=True) == "a red torus"


def test_ids_do_not_depend_on_the_order_of_the_texts():
    assert word_tokenizer(TEXTS).get_vocab() == word_tokenizer(reversed(TEXTS)).get_vocab()


def test_extra_tokens_are_found_where_they_stand():
    tokenizer = word_tokenizer(TEXTS, ["<image>"])
    ids = tokenizer("a red<image> cone").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "a", "red", "<image>", "cone", "<eos>"]
    assert tokenizer.convert_tokens_to_ids("<image>") == 4


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = word_tokenizer(TEXTS, ["<image>"], max_length=12)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = ["a <image> red Torus, unheard of", "the cone"]
    assert loaded(text, padding=True).input_ids == tokenizer(text, padding=True).input_ids
    assert loaded.model_max_length == 12
    assert loaded.padding_side == "right"
    assert loaded.unk_token_id == tokenizer.unk_token_id


def test_a_text_encoder_names_the_nearest_words():
    tokenizer = word_tokenizer(TEXTS, max_length=16)
    encoder = TextEncoder(make_model("clip"), tokenizer)
    with pytest.raises(UserError, match=r"doesn't know 'toru'; nearest are torus"):
        encoder.tokenize([parse("a red toru")])


def test_punctuation_that_no_caption_had_is_passed_over():
    """By a tokenizer that was saved before too: it is the encoder that reads a mark as a blank."""
    encoder = TextEncoder(make_model("bert"), word_tokenizer(["a red torus left of a blue cone"], max_length=16))
    plain = encoder.tokenize([parse("a {red torus} left of a {cone}", ["x", "y"])])
    marked = encoder.tokenize([parse("“A {red torus}”, left of a {cone}...", ["x", "y"])])
    assert torch.equal(marked.ids, plain.ids)
    assert torch.equal(marked.subjects, plain.subjects)
    with pytest.raises(UserError, match=r"'\?!' has no words"):
        encoder.tokenize([parse("?!")])
    with pytest.raises(UserError, match=r"no token for ','"):
        encoder.tokenize([parse("red{,} torus", ["x"])])
    with pytest.raises(UserError, match=r"doesn't know '😀'"):
        encoder.tokenize([parse("a red torus 😀.")])


def test_marks_of_the_tokenizer_and_endless_words_are_refused():
    encoder = TextEncoder(make_model("bert"), word_tokenizer(TEXTS, max_length=16))
    with pytest.raises(UserError, match=r"'<eos>' is a mark of the model's own"):
        encoder.tokenize([parse("a red <eos> torus")])
    with pytest.raises(UserError, match="doesn't know 'xxx") as error:
        encoder.tokenize([parse("x" * 100_000)])
    assert len(str(error.value)) < 300


def test_texts_without_words_are_refused():
    with pytest.raises(UserError, match="no words"):
        word_tokenizer([" "])
