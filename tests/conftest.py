"""Fixtures that several areas need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

CATEGORIES = ("sphere", "box", "cone", "torus")


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with random weights: 32 x 32 pixels, four modalities, categories named in ``CATEGORIES``."""
    from diffusers import AutoencoderKL

    from mmdit.flow.schedulers import make_scheduler
    from mmdit.modality import get_modalities
    from mmdit.models.transformer import MultimodalDiT
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

    torch.manual_seed(0)
    colors = [[0, 0, 0], [0, 0, 255], [255, 0, 0], [0, 255, 0], [255, 255, 0], [255, 0, 255]]
    names = ("floor", "wall", *CATEGORIES)
    classes = [{"id": i, "name": name, "color": color} for i, (name, color) in enumerate(zip(names, colors, strict=True))]
    modalities = get_modalities(["rgb", "depth", "normal", "segmentation"])
    modalities["segmentation"] = modalities["segmentation"].replace(classes=classes)
    transformer = MultimodalDiT(sample_size=8, hidden_size=16, depth=1, num_heads=2, num_classes=len(CATEGORIES))
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
        sample_size=16,
    )
    pipe = MultimodalDiTPipeline(
        transformer.eval(), vae.eval(), make_scheduler("euler"), modalities, dict(enumerate(CATEGORIES))
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder
