"""Real scenes with captions, and small networks of the real classes on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmdit.metrics.prompts.cases import PromptedSplit
from mmdit.metrics.samples import EvaluationSamples
from mmdit.modalities import get_modalities
from mmdit.sources.scenes.dataset import render_dataset

NUM_SCENES = 32  # two blocks of scenes of one main object, two of subjects: 8 alone, 8 pairs


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 rendered scenes, split "test", of a seed that nothing was trained on."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    render_dataset(root, NUM_SCENES, split="test", seed=11, num_workers=0, composition="mixed")
    return root


@pytest.fixture
def split(scenes: Path) -> PromptedSplit:
    modalities = get_modalities(["rgb", "depth", "normal", "segmentation"])
    return PromptedSplit(EvaluationSamples(scenes, "test", modalities, 64), "test")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model with tokenizer and image processor."""
    from mmdit.encoders.contrastive import make_clip, save_clip
    from mmdit.encoders.vocabulary import word_tokenizer

    words = "a an red blue green cat dog and on the beach in snow backpack torus cone sphere object left of photo"
    tokenizer = word_tokenizer([words], max_length=24)
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "hidden_size": 16, "depth": 1, "num_heads": 2, "projection_dim": 12}
    folder = tmp_path_factory.mktemp("models") / "clip"
    save_clip(folder, make_clip(tokenizer, 32, **sizes).eval(), tokenizer)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT without a pooling layer, as DINO is published, with its image processor."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False)
    folder = tmp_path_factory.mktemp("models") / "dino"
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
