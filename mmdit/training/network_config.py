"""Sections of ``TrainingConfig`` for the networks of the smaller recipes: the VAE, and what judges, aligns and reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmdit.bounds import ClosedUnitInterval, Layers, NonNegativeNumber, PositiveNumber, Width


@dataclass
class AutoencoderConfig:
    """The small VAE of recipe "autoencoder": a diffusers AutoencoderKL behind a pixel-unshuffle.

    Args:
        unshuffle: side k of the pixel-unshuffle; the VAE has 3 k² input and output channels.
        block_out_channels: channels per level; each level after the first halves the size.
        layers_per_block: residual layers per level, as in diffusers.
        latent_channels: C.
        mid_attention: attention in the middle block.
        settings: arguments of the loss (``mmdit.encoders.autoencoder_loss``).
        codecs: settings of a modality's codec, by name, that differ from the defaults, as for ``mmdit data encode``.
    """

    unshuffle: Layers = 4
    block_out_channels: list[int] = field(default_factory=lambda: [128])
    layers_per_block: Layers = 1
    latent_channels: Width = 4
    mid_attention: bool = False
    settings: dict[str, float] = field(default_factory=dict)
    codecs: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class DecoderConfig:
    """Recipe "decoder": that of the VAE of ``model.pretrained``, whose encoder, and so all latents, stay as they are.

    Args:
        predicted_share: share of the samples whose other modalities are decoded from what the model itself predicts of them from
            their RGB, in as many steps as it takes by itself: the decoder learns to make the best of its errors.
        settings: arguments of the loss (``mmdit.encoders.autoencoder_loss``); that of the KL divergence changes nothing here.
    """

    predicted_share: ClosedUnitInterval = 0.5
    settings: dict[str, float] = field(default_factory=dict)


@dataclass
class TeacherConfig:
    """The small ViT of recipe "teacher", for alignment and for the Fréchet distance on scenes.

    Args:
        patch_size: side of a patch in pixels.
        hidden_size: width.
        depth: number of blocks.
        num_heads: attention heads.
    """

    patch_size: Layers = 8
    hidden_size: Width = 160
    depth: Layers = 5
    num_heads: Layers = 5


@dataclass
class CLIPConfig:
    """The small CLIP model of recipe "clip"; both towers have one size.

    Args:
        image_size: side of the images in pixels; others are cropped and resized.
        patch_size: side of a patch in pixels.
        hidden_size: width of the towers.
        depth: number of layers of each tower.
        num_heads: attention heads.
        projection_dim: width of the embeddings.
        max_length: tokens of the longest text, with the two that mark its ends.
        subject_weight: weight of the loss between two pictures of one subject.
        name_weight: weight of the loss between these pictures and the subject's name, such as "red torus".
        pair_share: share of the samples that bring two pictures of one of their subjects.
        teacher: folder of a teacher (recipe "teacher") whose weights and sizes the image tower starts from; null = none.
        pretrained: folder of a CLIP model to start from, with its words and sizes; null = a new one.
        freeze_text: train the image tower alone (as in LiT, arXiv 2111.07991, with the towers' parts swapped), so that models
            that read the text tower's states stay valid.
        freeze_text_layers: with freeze_text, the words and the first so many layers alone are kept: enough for models that
            read the states of one of these (``prompts.hidden_layer``); null = the whole tower.
    """

    image_size: Layers = 64
    patch_size: Layers = 8
    hidden_size: Width = 192
    depth: Layers = 4
    num_heads: Layers = 4
    projection_dim: Width = 192
    max_length: Layers = 40
    subject_weight: NonNegativeNumber = 0.5
    name_weight: NonNegativeNumber = 0.0
    pair_share: ClosedUnitInterval = 0.25
    teacher: str | None = None
    pretrained: str | None = None
    freeze_text: bool = False
    freeze_text_layers: Layers | None = None


@dataclass
class ImageEncoderConfig:
    """Recipe "image_encoder": pseudo-words of ``model.pretrained`` that tell the colours of a picture's floor and wall.

    Args:
        colour_weight: weight of the colours' squared error, sRGB in [0, 1], against that of the words to those of
            ``model.pretrained``, in units of their standard deviation.
        colour_scale: colour of one standard deviation of the words; a smaller one makes colours a larger part of them.
    """

    colour_weight: NonNegativeNumber = 30.0
    colour_scale: PositiveNumber = 0.15


@dataclass
class StylesConfig:
    """Recipe "styles": the refiner of ``model.pretrained``, for which a style's picture comes to say what its floor and wall say.

    Args:
        kept_weight: weight of all other prompts' tokens, which stay what they were in ``model.pretrained``, against the styles'.
        attention_weight: weight of the refiner's attention from the word that comes to tell the floor to the picture's word.
    """

    kept_weight: NonNegativeNumber = 2.0
    attention_weight: NonNegativeNumber = 0.05


@dataclass
class DetectorConfig:
    """The small U-Net of recipe "detector", which judges what prompts made.

    Args:
        patch_size: side of a patch in pixels.
        channels: of each level, multiples of 8; each level after the first halves the size.
        blocks: residual blocks of each level on the way down.
    """

    patch_size: Layers = 4
    channels: list[Width] = field(default_factory=lambda: [48, 96, 96])
    blocks: list[Layers] = field(default_factory=lambda: [2, 3, 2])


@dataclass
class CaptionerConfig:
    """The small multimodal LLM of recipe "captioner": a ViT, a connector and a Llama.

    Args:
        image_size: side to which images are brought, in pixels.
        patch_size: side of a patch in pixels.
        scale_factor: side of the square of patches that become one token of the text.
        vision_hidden_size: width of the ViT.
        vision_depth: layers of the ViT.
        vision_num_heads: attention heads of the ViT.
        hidden_size: width of the Llama, and so of the prompts' states.
        depth: layers of the Llama.
        num_heads: attention heads of the Llama.
        max_length: tokens of the longest text, with its images.
        teacher: folder of a teacher (recipe "teacher") whose weights and sizes the ViT starts from; null = none.
    """

    image_size: Layers = 64
    patch_size: Layers = 8
    scale_factor: Layers = 4
    vision_hidden_size: Width = 160
    vision_depth: Layers = 4
    vision_num_heads: Layers = 5
    hidden_size: Width = 192
    depth: Layers = 4
    num_heads: Layers = 4
    max_length: Layers = 96
    teacher: str | None = None
