"""Tiny multimodal LLMs of the real classes, with random weights and a vocabulary of a dozen words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.image_utils import PILImageResampling

from mmdit.encoders.captioner import MARKS, make_captioner, save_captioner
from mmdit.encoders.vocabulary import word_tokenizer
from mmdit.prompt import IMAGE_WORD, mirror_text

WORDS = ["a red blue torus cone left of in front object beside"]
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _text(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return (
        {**SIZE, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 64} | ids | changes
    )


def save_captioner_of_captions(folder: Path, captions: Sequence[str]) -> None:
    """What recipe "captioner" makes, untrained and 16 wide: four tokens an image, the words of captions and mirror images."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer([*captions, *map(mirror_text, captions), IMAGE_WORD], MARKS, max_length=96)
    vision = {"vision_hidden_size": 16, "vision_depth": 1, "vision_num_heads": 2, "patch_size": 16, "scale_factor": 2}
    save_captioner(folder, *make_captioner(tokenizer, 64, **vision, hidden_size=16, depth=1, num_heads=2))


def _idefics_parts() -> tuple[Any, dict[str, Any]]:
    """The tokenizer of the family, and the settings of its configurations."""
    tokenizer = word_tokenizer(WORDS, MARKS, max_length=64)
    return tokenizer, {
        "text_config": {"model_type": "llama", **_text(tokenizer)},
        "vision_config": {**SIZE, "image_size": 32, "patch_size": 8},
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
        "scale_factor": 2,
    }


def make_idefics3() -> tuple[Any, Any]:
    """Four tokens an image, between marks."""
    tokenizer, settings = _idefics_parts()
    images = Idefics3ImageProcessor(
        size={"longest_edge": 32},
        max_image_size={"longest_edge": 32},
        do_image_splitting=False,
        resample=PILImageResampling.BICUBIC,  # Lanczos is of Pillow's or of torchvision's code, by torchvision's version
    )
    return Idefics3ForConditionalGeneration(Idefics3Config(**settings)), Idefics3Processor(
        images, tokenizer, image_seq_len=4
    )


def make_llava() -> tuple[Any, Any]:
    """Sixteen tokens an image, nothing around them."""
    tokenizer = word_tokenizer(WORDS, ["<image>"], max_length=64)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZE, image_size=32, patch_size=8, projection_dim=16),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return LlavaForConditionalGeneration(config), processor


def _qwen_parts() -> tuple[Any, dict[str, int], dict[str, Any]]:
    """The tokenizer, the ids of its marks, and the settings of the image processor."""
    marks = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    tokenizer = word_tokenizer(WORDS, [*marks.values()], max_length=64)
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    return tokenizer, ids, {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 2048}}


def make_qwen() -> tuple[Any, Any]:
    """As many tokens as the image has squares of 16 pixels, between marks; positions in three dimensions."""
    tokenizer, ids, scale = _qwen_parts()
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]}, max_window_layers=2),
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 8, "out_hidden_size": 16,
            "spatial_merge_size": 2, "fullatt_block_indexes": [1], "window_size": 32,
        },
        **ids,
    )  # fmt: skip
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(**scale), tokenizer, Qwen2VLVideoProcessor(**scale))
    return Qwen2_5_VLForConditionalGeneration(config), processor


def make_smolvlm() -> tuple[Any, Any]:
    """Idefics3's way, with the marks and the class of SmolVLM2; its videos are never given."""
    tokenizer, settings = _idefics_parts()
    tokenizer.image_token, tokenizer.fake_image_token = "<image>", "<fake_token_around_image>"
    tokenizer.global_image_token, tokenizer.end_of_utterance_token = "<global-img>", "<end_of_utterance>"
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    images = SmolVLMImageProcessor(**sizes, do_image_splitting=False, resample=PILImageResampling.BICUBIC)
    processor = SmolVLMProcessor(images, tokenizer, SmolVLMVideoProcessor(**sizes), image_seq_len=4)
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**settings)), processor


def make_qwen3() -> tuple[Any, Any]:
    """As ``make_qwen``, of Qwen3-VL's class: its first layers are given the image's features once more."""
    tokenizer, ids, scale = _qwen_parts()
    config = Qwen3VLConfig(
        text_config=_text(
            tokenizer,
            head_dim=8,
            rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        ),
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 8, "out_hidden_size": 16,
            "spatial_merge_size": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        **ids,
    )  # fmt: skip
    processor = Qwen3VLProcessor(Qwen2VLImageProcessor(**scale), tokenizer, Qwen3VLVideoProcessor(**scale))
    return Qwen3VLForConditionalGeneration(config), processor


FAMILIES = {
    "idefics3": make_idefics3,
    "smolvlm": make_smolvlm,
    "llava": make_llava,
    "qwen2.5": make_qwen,
    "qwen3": make_qwen3,
}


def make_multimodal(family: str) -> tuple[Any, Any]:
    """A model with random weights, large enough that every token matters, and its processor."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), processor
