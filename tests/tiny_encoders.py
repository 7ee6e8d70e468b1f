"""Tiny encoders of text and images of the real classes, with random weights and a vocabulary of a dozen words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from mmdit.encoders import contrastive
from mmdit.encoders.prompts import PromptEncoder, SubjectEncoder
from mmdit.encoders.text import TextEncoder
from mmdit.encoders.vocabulary import word_tokenizer
from mmdit.prompt import IMAGE_WORD, mirror_text

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


def save_clip_of_captions(folder: Path, captions: Sequence[str]) -> None:
    """A whole CLIP model, 16 wide, that knows the words of captions and of their mirror images."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer([*captions, *map(mirror_text, captions), IMAGE_WORD], max_length=40)
    sizes = {"patch_size": 16, "hidden_size": 16, "depth": 1, "num_heads": 2, "projection_dim": 16}
    contrastive.save_clip(folder, contrastive.make_clip(tokenizer, 64, **sizes), tokenizer)


def make_image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def make_image_model() -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=6,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def make_prompt_encoder(kind: str = "bert") -> PromptEncoder:
    """Text in 16, images in 6 numbers."""
    return PromptEncoder(
        TextEncoder(make_model(kind), make_tokenizer()), SubjectEncoder(make_image_model(), make_image_processor())
    )


def save_clip(folder) -> CLIPModel:
    """A whole CLIP model with tokenizer and image processor in one folder."""
    text, image = make_model("clip").config.to_dict(), make_image_model().config.to_dict()
    torch.manual_seed(1)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=6))
    for part in (model, make_tokenizer(), make_image_processor()):
        part.save_pretrained(folder)
    return model
