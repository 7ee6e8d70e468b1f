"""A CLIP model of our own size, trained on captioned images (CLIP, arXiv 2103.00020).

B images, P pairs of pictures of one subject, L tokens, H W pixels, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.errors import UserError

MAX_SCALE = 100.0  # of the logits, as in CLIP


def make_clip(
    tokenizer: PreTrainedTokenizerFast,
    image_size: int,
    *,
    patch_size: int = 8,
    hidden_size: int = 192,
    depth: int = 4,
    num_heads: int = 4,
    projection_dim: int = 192,
    teacher: SceneTeacher | None = None,
) -> CLIPModel:
    """Build a ``CLIPModel`` with random weights, both towers of one size; or with a trained image tower.

    Args:
        tokenizer: its vocabulary and its longest text are the text tower's.
        image_size, patch_size: of square images, in pixels.
        hidden_size, depth, num_heads: of each tower.
        projection_dim: D.
        teacher: where the image tower takes its weights and sizes from (``start_image_tower``); None = random ones.

    Raises:
        UserError: sizes that don't divide, or a teacher of another image size.
    """
    if image_size % patch_size:
        raise UserError(f"clip.patch_size {patch_size} does not divide images of {image_size} pixels")
    if hidden_size % num_heads:
        raise UserError(f"clip.hidden_size {hidden_size} is not a multiple of clip.num_heads {num_heads}")
    tower = {
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
        "projection_dim": projection_dim,  # read where a tower is loaded by itself
    }
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**tower, "image_size": image_size, "patch_size": patch_size}
    if teacher is not None:
        vision |= tower_sizes(teacher, image_size, "clip")
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim))
    if teacher is not None:
        start_image_tower(model, teacher)
    return model


def tower_sizes(teacher: SceneTeacher, image_size: int, section: str) -> dict[str, Any]:
    """A teacher's sizes as those of an image tower of transformers.

    Raises UserError for another image size; ``section``: of the configuration, for the message.
    """
    sizes = teacher.config
    if sizes["image_size"] != image_size:
        raise UserError(f"{section}.teacher reads {sizes['image_size']} pixels, {section}.image_size is {image_size}")
    width = sizes["hidden_size"]
    return {
        "patch_size": sizes["patch_size"],
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


@torch.no_grad()
def start_image_tower(model: CLIPModel, teacher: SceneTeacher) -> None:
    """Copy a teacher's weights into the image tower, layer by layer.

    A scene's caption says little about shapes, and few captions teach a tower to see them. What CLIP adds begins neutral: the
    token that is read at the end at zero, the norm before the first layer at the scale of the teacher's tokens of noise.
    """
    tower, vit = model.vision_model, teacher.vit
    embeddings = tower.embeddings
    embeddings.patch_embedding.weight.copy_(vit.patch_embed.proj.weight)
    positions = vit.pos_embed[0] + vit.patch_embed.proj.bias  # CLIP's patches have no bias
    embeddings.position_embedding.weight.copy_(F.pad(positions, (0, 0, 1, 0)))
    embeddings.class_embedding.zero_()
    noise = torch.rand(8, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tower.pre_layrnorm.weight.fill_(float((vit.patch_embed(noise) + vit.pos_embed).std(dim=-1).mean()))
    tower.pre_layrnorm.bias.zero_()
    copy_layers(tower.encoder.layers, vit.blocks)


@torch.no_grad()
def copy_layers(layers: Any, blocks: Any) -> None:
    """Copy the weights of a timm ViT's blocks into the layers of an image tower of transformers."""
    for ours, theirs in zip(layers, blocks, strict=True):
        attention = ours.self_attn
        for part in ("weight", "bias"):
            q, k, v = getattr(theirs.attn.qkv, part).chunk(3)
            for name, value in (
                ("q_proj", q),
                ("k_proj", k),
                ("v_proj", v),
                ("out_proj", getattr(theirs.attn.proj, part)),
            ):
                getattr(getattr(attention, name), part).copy_(value)
            pairs = ((ours.layer_norm1, theirs.norm1), (ours.layer_norm2, theirs.norm2))
            for own, given in (*pairs, (ours.mlp.fc1, theirs.mlp.fc1), (ours.mlp.fc2, theirs.mlp.fc2)):
                getattr(own, part).copy_(getattr(given, part))


def freeze_text(model: CLIPModel, layers: int | None = None) -> None:
    """Keep the text tower as it is: all of it, or the words and the first ``layers`` layers.

    Raises:
        UserError: more layers than the tower has.
    """
    tower = model.text_model
    if layers is None:
        tower.requires_grad_(False)
        model.text_projection.requires_grad_(False)
        return
    if layers > len(tower.encoder.layers):
        raise UserError(f"clip.freeze_text_layers is {layers}: the text tower has {len(tower.encoder.layers)}")
    tower.embeddings.requires_grad_(False)
    tower.encoder.layers[:layers].requires_grad_(False)


def image_processor(image_size: int) -> CLIPImageProcessor:
    """The processor that brings pictures to the tower's size and to [-1, 1]."""
    size = {"height": image_size, "width": image_size}
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=size, image_mean=half, image_std=half)


def save_clip(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write model, tokenizer and image processor, as transformers lays a CLIP model out."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    image_processor(int(model.config.vision_config.image_size)).save_pretrained(folder)


class ContrastiveObjective:
    """CLIP's symmetric loss, the same between two pictures of each subject, and between these and what the subject is called.

    Equal captions in a batch are all right answers for each other's images (as in SupCon, arXiv 2004.11362), for a scene's
    caption fits many scenes.

    Args:
        subject_weight: weight of the loss between pictures of a subject: it makes the image embedding tell subjects apart
            that one caption fits.
        name_weight: weight of the loss between these pictures and the subject's name: a scene's caption leaves open which of
            its things has which colour.
    """

    def __init__(self, subject_weight: float = 0.5, name_weight: float = 0.0) -> None:
        self.subject_weight, self.name_weight = subject_weight, name_weight

    def __call__(
        self, model: CLIPModel, rgb: Tensor, captions: Texts, pairs: Tensor | None = None, names: Texts | None = None
    ) -> dict[str, Tensor | tuple[Tensor, int]]:
        """Compute the losses "loss", "text", with pairs "subject", and with their names "name", these with their number.

        "accuracy" is the share of images nearest to their caption.

        Args:
            model: both towers.
            rgb: (B, 3, H, W) in [-1, 1].
            captions: B texts.
            pairs: (P, 2, 3, H, W), two pictures of each of P subjects; None = none.
            names: P texts, what these are called; None = not known.
        """
        scale = model.logit_scale.exp().clamp(max=MAX_SCALE)
        pictures = rgb if pairs is None else torch.cat([rgb, pairs.flatten(0, 1)])
        embedded = _unit(model.get_image_features(pixel_values=pictures))
        images = embedded[: len(rgb)]  # (B, D)
        same = captions.same()
        logits = scale * images @ captions.embedded(model).T
        loss = symmetric_loss(logits, same)
        accuracy = same.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        losses: dict[str, Tensor | tuple[Tensor, int]] = {"text": loss.detach(), "accuracy": accuracy}
        if pairs is None:
            return {**losses, "loss": loss}
        sides = embedded[len(rgb) :].unflatten(0, (-1, 2)).unbind(1)  # two of (P, D)
        itself = torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
        subject = symmetric_loss(scale * sides[0] @ sides[1].T, itself)
        losses["subject"] = subject.detach(), len(pairs)
        loss = loss + self.subject_weight * subject
        if names is not None and self.name_weight:
            called, same = names.embedded(model), names.same()
            name = torch.stack([symmetric_loss(scale * side @ called.T, same) for side in sides]).mean()
            losses["name"] = name.detach(), len(pairs)
            loss = loss + self.name_weight * name
        return {**losses, "loss": loss}


@dataclass(frozen=True)
class Texts:
    """B texts and the tokenizer's output for them: "input_ids" and "attention_mask", (B, L)."""

    texts: Sequence[str]
    tokens: dict[str, Tensor]

    @classmethod
    def read(cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, device: torch.device) -> Texts:
        """Tokenize texts; what is longer than the model's longest text is cut."""
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return cls(texts, {key: tokens[key].to(device) for key in ("input_ids", "attention_mask")})

    def embedded(self, model: CLIPModel) -> Tensor:
        """Their embeddings on the unit sphere, (B, D)."""
        return _unit(model.get_text_features(**self.tokens))

    def same(self) -> Tensor:
        """Which of them are equal, bool (B, B)."""
        kinds = {text: number for number, text in enumerate(dict.fromkeys(self.texts))}
        numbers = torch.tensor([kinds[text] for text in self.texts], device=self.tokens["input_ids"].device)
        return numbers[:, None] == numbers[None, :]


def symmetric_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Mean cross-entropy of rows and of columns of ``logits`` (B, B), the right answers ``same`` (B, B) with equal shares."""
    targets = same.float()
    rows = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
    return (rows + columns) / 2


def _unit(output: Any) -> Tensor:
    """The embeddings on the unit sphere; newer transformers return them in a record."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features, dim=-1)
