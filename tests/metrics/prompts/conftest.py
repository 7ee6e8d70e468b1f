"""A split of real scenes with captions, the bundled instrument, and a tiny pipeline that takes prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdit.encoders.scene_detector import SceneDetector
from mmdit.metrics.prompts.cases import PromptedSplit
from mmdit.metrics.prompts.instrument import Instrument
from mmdit.metrics.samples import EvaluationSamples
from mmdit.modalities import get_modalities
from mmdit.pipelines.loading import bundled_models
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


@pytest.fixture
def split(prompt_scenes: Path) -> PromptedSplit:
    modalities = get_modalities(["rgb", "depth", "normal", "segmentation"])
    return PromptedSplit(EvaluationSamples(prompt_scenes, "test", modalities, 64), "test")


@pytest.fixture(scope="session")
def instrument() -> Instrument:
    """The bundled one."""
    return Instrument(SceneDetector.from_pretrained(bundled_models()["scenes64"] / "detector"))


@pytest.fixture
def prompted(prompted_dir: Path) -> MultimodalDiTPipeline:
    pipe = MultimodalDiTPipeline.from_pretrained(prompted_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe
