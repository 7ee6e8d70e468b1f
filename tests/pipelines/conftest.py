from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from mmdit.flow.schedulers import SCHEDULERS, make_scheduler
from mmdit.modalities import get_modalities
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

NAMES = ["sphere", "box", "cylinder", "cone", "torus"]
CLASSES = [
    {"id": 0, "name": "floor", "color": [0, 0, 0]},
    {"id": 1, "name": "wall", "color": [255, 255, 255]},
    {"id": 7, "name": "torus", "color": [255, 0, 0]},
]


def _randomise(model: torch.nn.Module, std: float) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def make_pipeline() -> Callable[..., MultimodalDiTPipeline]:
    """A tiny pipeline with random weights: 32 x 32 pixels, latents 4 x 8 x 8, a VAE behind a 2 x pixel-unshuffle."""

    def make(
        scheduler: str = "euler",
        names: bool = True,
        zero: bool = False,
        components: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> MultimodalDiTPipeline:
        torch.manual_seed(0)
        values = {"sample_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": len(NAMES)}
        values["second_time"] = SCHEDULERS[scheduler].jumps
        transformer = MultimodalDiT(**(values | config)).eval()
        if not zero:
            _randomise(transformer, 0.15)
        vae = AutoencoderKL(
            in_channels=12,
            out_channels=12,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            mid_block_add_attention=False,
        ).eval()
        modalities = get_modalities(transformer.config.modalities)
        modalities = {k: m.replace(latents_mean=[0.1] * 4, latents_std=[0.8] * 4) for k, m in modalities.items()}
        if "segmentation" in modalities:
            modalities["segmentation"] = modalities["segmentation"].replace(classes=CLASSES)
        id2label = dict(enumerate(NAMES)) if names else None
        pipe = MultimodalDiTPipeline(
            transformer, vae, make_scheduler(scheduler), modalities, id2label, **(components or {})
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def pipe(make_pipeline: Callable[..., MultimodalDiTPipeline]) -> MultimodalDiTPipeline:
    return make_pipeline()


@pytest.fixture
def make_prompted(make_pipeline: Callable[..., MultimodalDiTPipeline]) -> Callable[..., MultimodalDiTPipeline]:
    """A tiny pipeline that takes prompts of text and subjects, with a text encoder of this kind."""
    from tiny_encoders import make_prompt_encoder

    def make(kind: str = "bert") -> MultimodalDiTPipeline:
        settings = {"text_width": 16, "image_width": 6}
        components = make_prompt_encoder(kind).components
        return make_pipeline(components=components, block="cross", conditioner="tiue", conditioner_settings=settings)

    return make


@pytest.fixture
def prompted(make_prompted: Callable[..., MultimodalDiTPipeline]) -> MultimodalDiTPipeline:
    return make_prompted()
