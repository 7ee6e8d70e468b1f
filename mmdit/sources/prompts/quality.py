"""How well a caption fits its image, and how much people would like the image, by CLIP."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, CLIPModel

from mmdit.errors import UserError
from mmdit.sources.labelling.network import FrozenNetwork, join_equal, load_processor, load_transformers
from mmdit.sources.labelling.source import ModelSource
from mmdit.sources.prompts.settings import QualitySettings
from mmdit.storage.digests import digest_file
from mmdit.storage.weights import check_dtypes, read_header

CLIP_KINDS: Collection[str] = ("clip",)
CLIP_SCORE_SCALE = 2.5  # CLIPScore is 2.5 x cosine, arXiv 2104.08718


class ClipJudge(FrozenNetwork):
    """CLIP, and a linear head for aesthetics where there is one.

    Args:
        source: where the weights are.
        dtype: that it runs in.
        settings: the least scores, and the head.
    """

    def __init__(self, source: ModelSource, dtype: str, settings: QualitySettings) -> None:
        super().__init__(source, dtype)
        self.settings = settings
        self.model = load_transformers(CLIPModel, source, self.dtype)
        self.processor = load_processor(AutoProcessor, source)
        self.head: tuple[Tensor, Tensor] | None = None
        if settings.aesthetics is not None:
            self.head = read_linear_head(settings.aesthetics, int(self.model.config.projection_dim))

    def facts(self) -> Mapping[str, Any]:
        facts: dict[str, Any] = {"min_clip_score": float(self.settings.min_clip_score)}
        if self.settings.aesthetics is not None:
            facts["aesthetics"] = f"sha256:{digest_file(self.settings.aesthetics)[:32]}"
            facts["min_aesthetics"] = float(self.settings.min_aesthetics)
        return facts

    def refuses_image(self, embedding: Tensor) -> str:
        """Why an image is left out, "" if it isn't; ``embedding`` as ``embed_images`` gives it."""
        if self.head is None:
            return ""
        weight, bias = self.head
        score = float(weight @ embedding + bias)
        return "" if score >= self.settings.min_aesthetics else "aesthetics below --quality.min_aesthetics"

    def refuses_captions(self, embeddings: Sequence[Tensor], captions: Sequence[Sequence[str]]) -> list[str]:
        """Why each image with its captions is left out, "" if it isn't: of several captions the one that fits best counts."""
        counts = [len(each) for each in captions]
        texts = self.embed_texts([text for each in captions for text in each]).split(counts)
        scores = [
            CLIP_SCORE_SCALE * max(0.0, float((own @ embedding).max()))
            for own, embedding in zip(texts, embeddings, strict=True)
        ]
        low = "CLIP score below --quality.min_clip_score"
        return ["" if score >= self.settings.min_clip_score else low for score in scores]

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embed images (H, W, 3) uint8: -> (N, P) float32 of unit length, on the CPU."""
        embeddings = torch.empty(len(images), int(self.model.config.projection_dim))
        for numbers, inputs in join_equal([self.processor(images=image, return_tensors="pt") for image in images]):
            pixels = inputs["pixel_values"].to(self.device, self.dtype)
            states = self.model.vision_model(pixel_values=pixels).pooler_output
            embeddings[numbers] = _unit(self.model.visual_projection(states))
        return embeddings

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts, cut to what CLIP reads: -> (N, P) float32 of unit length, on the CPU."""
        if not texts:
            return torch.zeros(0, int(self.model.config.projection_dim))
        limit = int(self.model.config.text_config.max_position_embeddings)
        encoded = self.processor(
            text=list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self.device)
        states = self.model.text_model(**encoded).pooler_output
        return _unit(self.model.text_projection(states))


def read_linear_head(path: Path, width: int) -> tuple[Tensor, Tensor]:
    """Read a linear head: a weight (1, P) and a bias (1,), or a stack of such layers, which is one linear layer too.

    LAION's predictor is such a stack without activations.

    Returns:
        weight (P,), bias ().

    Raises:
        UserError: a file that can't be read, or whose layers don't follow each other from P to 1.
    """
    header = read_header(path)
    check_dtypes(path, header)
    names = sorted((name for name in header if name.endswith("weight")), key=_numbers)
    state = load_file(path)
    weight, bias = torch.eye(width), torch.zeros(width)
    for name in names:
        layer, offset = state[name].float(), state.get(f"{name.removesuffix('weight')}bias")
        if layer.dim() != 2 or layer.shape[1] != weight.shape[0]:
            wanted = f"(n, {weight.shape[0]})"
            raise UserError(
                f"{path}: {name} is of shape {tuple(layer.shape)}: a head on {width} values needs {wanted} here"
            )
        bias = layer @ bias + (offset.float() if offset is not None else 0)
        weight = layer @ weight
    if not names or weight.shape[0] != 1:
        raise UserError(f"{path}: no linear head: give a 'weight' of shape (1, {width}) and a 'bias' of shape (1,)")
    return weight[0], bias[0]


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _unit(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states.float(), dim=-1).cpu()
