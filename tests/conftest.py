"""Fixtures that several areas need."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each process; before torch is imported, and for its children
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # official_networks.py, processes.py
from diffusers_checkout import marks
from processes import Processes


def pytest_configure(config: pytest.Config) -> None:
    for mark in marks():
        config.addinivalue_line("markers", mark)


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Real processes that start in no time."""
    server = Processes(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with random weights: 64 x 64 pixels, four modalities, the categories and classes of the scenes."""
    from diffusers import AutoencoderKL

    from mmdit.flow.schedulers import make_scheduler
    from mmdit.modalities import get_modalities
    from mmdit.models.transformer import MultimodalDiT
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
    from mmdit.sources.scenes.dataset import SEGMENTATION_CLASSES
    from mmdit.sources.scenes.layout import CATEGORY_NAMES

    torch.manual_seed(0)
    modalities = get_modalities(["rgb", "depth", "normal", "segmentation"])
    modalities["segmentation"] = modalities["segmentation"].replace(classes=list(SEGMENTATION_CLASSES))
    transformer = MultimodalDiT(sample_size=16, hidden_size=16, depth=1, num_heads=2, num_classes=len(CATEGORY_NAMES))
    for head in transformer.head.linears:  # zero at the start: outputs would not depend on inputs
        torch.nn.init.normal_(head.weight, std=0.2)
    vae = AutoencoderKL(
        in_channels=12,
        out_channels=12,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )
    pipe = MultimodalDiTPipeline(
        transformer.eval(), vae.eval(), make_scheduler("euler"), modalities, dict(enumerate(CATEGORY_NAMES))
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompted_pipeline_dir(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_pipeline_dir``, and it takes prompts: words of ``tiny_encoders.WORDS``, and subjects."""
    from tiny_encoders import make_prompt_encoder

    from mmdit.models.transformer import MultimodalDiT
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    torch.manual_seed(0)
    transformer = MultimodalDiT(
        sample_size=16, hidden_size=16, depth=1, num_heads=2, num_classes=len(pipe.id2label), block="cross",
        conditioner="tiue", conditioner_settings={"text_width": 16, "image_width": 6},
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(std=0.2)
    components = {**pipe.components, "transformer": transformer, **make_prompt_encoder().components}
    folder = tmp_path_factory.mktemp("models") / "prompted"
    MultimodalDiTPipeline(**components, **pipe.parameters).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class PromptFolders:
    """Scenes with captions, their latents (with mirrored views), and a CLIP model and a multimodal LLM that know their words."""

    data: Path
    latents: Path
    clip: Path
    captioner: Path


@pytest.fixture(scope="session")
def prompt_folders(tmp_path_factory: pytest.TempPathFactory) -> PromptFolders:
    """16 scenes of both kinds, split train; all four modalities at 64 x 64 as latents of 16 x 16; random encoders."""
    from diffusers import AutoencoderKL
    from tiny_encoders import save_clip_of_captions
    from tiny_multimodal import save_captioner_of_captions

    from mmdit.data.lines import Rules
    from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
    from mmdit.data.prompts import read_prompts
    from mmdit.encoders.precompute import encode_dataset
    from mmdit.sources.scenes.dataset import render_dataset

    root = tmp_path_factory.mktemp("prompts")
    folders = PromptFolders(root / "data", root / "latents", root / "clip", root / "captioner")
    render_dataset(folders.data, num_samples=16, seed=3, num_workers=0, composition="mixed")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=48, out_channels=48, block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False
    )
    modalities = modalities_from_dataset(read_dataset_info(folders.data))
    encode_dataset(folders.data, folders.latents, vae.eval(), modalities, say=lambda text: None)
    prompts = read_prompts(Rules(folders.data, "train", None, None))
    captions = [text for sample in prompts.values() for text in sample.captions]
    save_clip_of_captions(folders.clip, captions)
    save_captioner_of_captions(folders.captioner, captions)
    return folders


@pytest.fixture(scope="session")
def style_latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of the bundled model's ten example scenes in a new style, split "train"."""
    from tiny_style import save_style_latents

    return save_style_latents(tmp_path_factory.mktemp("style"))


@pytest.fixture(scope="session")
def prompt_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 rendered scenes with captions, split "test": a dataset folder."""
    from tiny_prompts import render_prompted

    root = tmp_path_factory.mktemp("scenes") / "data"
    render_prompted(root)
    return root


@pytest.fixture(scope="session")
def prompted_dir(prompt_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with random weights that takes prompts with subjects; its CLIP model is in ../clip."""
    from tiny_prompts import save_prompted_pipeline

    folder = tmp_path_factory.mktemp("prompted")
    save_prompted_pipeline(folder, prompt_scenes)
    return folder / "pipeline"


@pytest.fixture(scope="session")
def clip_folder(prompted_dir: Path) -> Path:
    """A tiny CLIP model with tokenizer and image processor."""
    return prompted_dir.parent / "clip"


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT without a pooling layer, as DINO is published."""
    from tiny_prompts import save_dino

    folder = tmp_path_factory.mktemp("dino")
    save_dino(folder)
    return folder


def _keep(rows: list[dict[str, Any]]) -> None:
    return None


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """A factory of small random datasets on disk, in one folder; sample i of a split has the category number i % 2."""
    import numpy as np
    from PIL import Image

    info = {
        "modalities": ["rgb", "depth", "normal", "segmentation"],
        "categories": ["torus", "cone"],
        "segmentation_classes": [
            {"id": 0, "name": "floor", "color": [0, 0, 0]},
            {"id": 1, "name": "wall", "color": [0, 0, 255]},
            {"id": 5, "name": "torus", "color": [255, 0, 0]},
        ],
        "depth_scale": 0.001,
        "licence": "CC0",
        "provenance": "random numbers",
    }

    def make(
        num_samples: int = 5,
        size: int = 16,
        split: str = "train",
        edit_rows: Callable[[list[dict[str, Any]]], None] = _keep,
        **changes: Any,
    ) -> Path:
        root = tmp_path / "dataset"
        rng = np.random.default_rng(len(split))
        rows = []
        for i in range(num_samples):
            normals = rng.normal(size=(size, size, 3))
            normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
            arrays = {
                "rgb": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
                "depth": rng.integers(1000, 9000, (size, size)).astype(np.uint16),
                "normal": np.round((normals + 1) / 2 * 255).astype(np.uint8),
                "segmentation": rng.choice([0, 1, 5], (size, size)).astype(np.uint8),
            }
            row = {"id": f"{i:03d}", "category": info["categories"][i % 2]}
            for name, array in arrays.items():
                row[name] = f"{name}/{i:03d}.png"
                (root / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / split / row[name])
            rows.append(row)
        edit_rows(rows)
        (root / "dataset.json").write_text(json.dumps(info | changes))
        (root / split / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return root

    return make
