"""Frozen networks that say how like pictures and words are: CLIP, and DINO for pictures alone; by folder or Hub id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.errors import UserError

CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"  # DreamBooth's (arXiv 2208.12242)


class ImageTextNetwork(nn.Module):
    """A CLIP model of transformers, both towers.

    Raises:
        UserError: no CLIP, or a folder or Hub id that can't be loaded.
    """

    def __init__(self, name_or_folder: str = CLIP) -> None:
        super().__init__()
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        found = PretrainedFolder.find(name_or_folder, "CLIP model")
        kind = found.config.get("model_type")
        if kind != "clip":
            raise UserError(f"{found.title} is a {kind!r}: give a CLIP model with both towers, such as {CLIP}")
        self.name = name_or_folder
        self.model = found.load_model(CLIPModel)
        self.tokenizer, self.processor = found.load(AutoTokenizer), found.load(AutoImageProcessor)

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings (N, D), float32."""
        pixels = self.processor(images=[each.convert("RGB") for each in pictures], return_tensors="pt")["pixel_values"]
        tower = self.model.vision_model(pixel_values=pixels.to(self.model.device))
        return F.normalize(self.model.visual_projection(tower.pooler_output).float(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (N, D), float32; of a text that is too long its beginning, as is usual."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        given = {key: tokens[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
        tower = self.model.text_model(**given)
        return F.normalize(self.model.text_projection(tower.pooler_output).float(), dim=-1)


class ImageNetwork(nn.Module):
    """A vision transformer of transformers that has a class token: DINO, DINOv2.

    Raises:
        UserError: a model without one, or a folder or Hub id that can't be loaded.
    """

    def __init__(self, name_or_folder: str = DINO) -> None:
        super().__init__()
        from transformers import AutoImageProcessor, AutoModel

        found = PretrainedFolder.find(name_or_folder, "DINO model")
        if found.config.get("model_type") not in _WITH_CLASS_TOKEN:
            kind, known = found.config.get("model_type"), ", ".join(sorted(_WITH_CLASS_TOKEN))
            raise UserError(f"{found.title} is a {kind!r}: give one of the kinds {known}, such as {DINO}")
        self.name = name_or_folder
        self.model = found.load_model(_without_pooling(AutoModel, found.config))
        self.processor = found.load(AutoImageProcessor)

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit class tokens (N, D), float32."""
        pixels = self.processor(images=[each.convert("RGB") for each in pictures], return_tensors="pt")["pixel_values"]
        states = self.model(pixel_values=pixels.to(self.model.device)).last_hidden_state
        return F.normalize(states[:, 0].float(), dim=-1)


_WITH_CLASS_TOKEN = frozenset({"vit", "dinov2", "dinov2_with_registers", "dinov3_vit"})


def _without_pooling(auto_class: Any, config: Any) -> Any:
    """The model's class, built without the pooling layer that DINO's weights lack."""
    if config.get("model_type") != "vit":
        return auto_class
    from transformers import ViTModel

    class Headless(ViTModel):
        def __init__(self, config: Any, add_pooling_layer: bool = False, **options: Any) -> None:
            super().__init__(config, add_pooling_layer=False, **options)

    return Headless
