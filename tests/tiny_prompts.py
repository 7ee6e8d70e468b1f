"""Tiny things for tests of prompts: scenes with captions, a pipeline that takes prompts, a DINO; real classes on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tiny_encoders import save_clip_of_captions

from mmdit.colours import COLOUR_NAMES
from mmdit.encoders.prompts import load_prompt_encoder
from mmdit.flow.schedulers import make_scheduler
from mmdit.modalities import get_modalities
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.sources.scenes.dataset import SEGMENTATION_CLASSES, render_dataset
from mmdit.sources.scenes.layout import CATEGORY_NAMES

NUM_SCENES = 32  # two blocks of scenes of one main object, two of subjects: 8 alone, 8 pairs
# Words of the miniatures of public benchmarks.
OTHER_WORDS = "an left right of in front behind cat dog and on the snow beach backpack clock green"


def render_prompted(root: Path) -> None:
    """Render 32 scenes, split "test", of a seed that nothing was trained on."""
    render_dataset(root, NUM_SCENES, split="test", seed=11, num_workers=0, composition="mixed")


def save_prompted_pipeline(folder: Path, scenes: Path) -> None:
    """A pipeline folder with random weights that takes prompts with subjects, 64 x 64 pixels; it knows the scenes' words."""
    lines = map(json.loads, (scenes / "test" / "prompts.jsonl").read_text().splitlines())
    captions = [text for line in lines for text in line["captions"]]
    captions += [f"a {colour} {category}" for colour in COLOUR_NAMES for category in CATEGORY_NAMES]
    save_clip_of_captions(folder / "clip", [*captions, OTHER_WORDS])
    encoder = load_prompt_encoder("tiue", str(folder / "clip"))
    torch.manual_seed(0)
    modalities = get_modalities(["rgb", "depth", "normal", "segmentation"])
    modalities["segmentation"] = modalities["segmentation"].replace(classes=list(SEGMENTATION_CLASSES))
    transformer = MultimodalDiT(
        sample_size=16, hidden_size=16, depth=1, num_heads=2, num_classes=len(CATEGORY_NAMES), block="cross",
        conditioner="tiue", conditioner_settings=encoder.widths,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    vae = AutoencoderKL(
        in_channels=12, out_channels=12, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4, sample_size=32,
    )  # fmt: skip
    pipe = MultimodalDiTPipeline(
        transformer.eval(), vae.eval(), make_scheduler("euler"), modalities, dict(enumerate(CATEGORY_NAMES)),
        **encoder.components,
    )  # fmt: skip
    pipe.save_pretrained(folder / "pipeline")


def save_dino(folder: Path) -> None:
    """A tiny ViT without a pooling layer, as DINO is published, with its image processor."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
