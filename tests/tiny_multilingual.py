"""A tiny XLM-RoBERTa of the real classes, with random weights, and captions of scenes in French and in Chinese."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import UnigramTrainer
from transformers import XLMRobertaConfig, XLMRobertaModel

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # numbered as XLM-RoBERTa does
# English word of a caption -> French, Chinese
WORDS = {
    "sphere": ("sphère", "球"), "box": ("boîte", "盒子"), "cylinder": ("cylindre", "圆柱"), "cone": ("cône", "圆锥"),
    "capsule": ("capsule", "胶囊"), "torus": ("tore", "圆环"), "pyramid": ("pyramide", "金字塔"), "cross": ("croix", "十字架"),
    "arch": ("arche", "拱门"), "hourglass": ("sablier", "沙漏"), "red": ("rouge", "红色"), "orange": ("orange", "橙色"),
    "yellow": ("jaune", "黄色"), "green": ("vert", "绿色"), "cyan": ("cyan", "青色"), "blue": ("bleu", "蓝色"),
    "purple": ("violet", "紫色"), "pink": ("rose", "粉色"),
}  # fmt: skip


def translate(line: dict[str, Any]) -> dict[str, Any]:
    """A line of prompts.jsonl with two captions of its first object, in French and in Chinese, and where its words are."""
    entity = line["entities"][0]
    (colour_fr, colour_zh), (noun_fr, noun_zh) = (WORDS[word] for word in entity["phrase"].split())
    captions = [f"une image de : {noun_fr} {colour_fr}", f"一个{colour_zh}的{noun_zh}的图片"]
    marked = (f"{noun_fr} {colour_fr}", noun_zh)
    spans = [[text.index(words), text.index(words) + len(words)] for text, words in zip(captions, marked, strict=True)]
    return {**line, "captions": captions, "entities": [{**entity, "spans": spans}]}


def save_xlm_roberta(folder: Path, captions: Sequence[str]) -> None:
    """16 wide; its tokenizer's pieces are learned from captions."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = Metaspace()
    trainer = UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 32, "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = XLMRobertaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=34, **sizes)
    XLMRobertaModel(config).save_pretrained(folder)
