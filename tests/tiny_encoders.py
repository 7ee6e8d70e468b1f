"""Tiny text encoders of the real classes, with random weights and a vocabulary of a dozen words."""

from __future__ import annotations

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

from mmdit.encoders.text import TextEncoder

WORDS = ["a", "red", "blue", "torus", "cone", "left", "of", "in", "front", "object", "tor", "##us"]
SPECIAL = ["<pad>", "<s>", "<unk>", "</s>"]
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}


def make_tokenizer(pieces: bool = False) -> PreTrainedTokenizerFast:
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


def make_model(kind: str):
    torch.manual_seed(0)
    size = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "clip":
        return CLIPTextModel(CLIPTextConfig(**size, **layers, max_position_embeddings=16))
    if kind == "bert":
        return BertModel(BertConfig(**size, **layers, max_position_embeddings=16))
    return T5EncoderModel(T5Config(vocab_size=len(VOCABULARY), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def make_clip() -> TextEncoder:
    return TextEncoder(make_model("clip"), make_tokenizer())


def make_bert() -> TextEncoder:
    return TextEncoder(make_model("bert"), make_tokenizer())
