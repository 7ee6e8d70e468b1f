"""Depth from Depth Anything (V1, V2, metric versions of V2) and from Marigold.

Relative labellers give depth or disparity (1 / depth) up to an unknown scale and shift. They are stored as depth from 1
to ``RELATIVE_RANGE`` such that the space the labeller is linear in is kept: a depth codec of the same ``space`` gives
back its output, because the codec normalises each image in that space. dataset.json names the space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import MarigoldDepthPipeline
from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation

from mmdit.sources.labelling.labeller import Labeller
from mmdit.sources.labelling.marigold import MarigoldRunner
from mmdit.sources.labelling.network import load_processor, load_transformers
from mmdit.sources.labelling.settings import LabellerSettings
from mmdit.sources.labelling.source import ModelSource

RELATIVE_RANGE = 32.0
RELATIVE_SCALE = 0.0005  # 32 is 64000 units; disparity from 1/32 to 1 is kept to 1/4000 of its range at the nearest


def from_disparity(disparity: np.ndarray) -> np.ndarray:
    """Relative disparity (H, W), larger = nearer, any scale and shift -> depth from 1 to ``RELATIVE_RANGE``, float32."""
    return (1 / (1 / RELATIVE_RANGE + (1 - 1 / RELATIVE_RANGE) * _unit_range(disparity))).astype(np.float32)


def from_relative_depth(depth: np.ndarray) -> np.ndarray:
    """Relative depth (H, W), larger = farther, any scale and shift -> depth from 1 to ``RELATIVE_RANGE``, float32."""
    return (1 + (RELATIVE_RANGE - 1) * _unit_range(depth)).astype(np.float32)


def _unit_range(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    # A map of one value says nothing; it becomes one of one value.
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


class DepthAnythingLabeller(Labeller):
    """Depth Anything V2 (arXiv 2406.09414) through transformers; its metric versions give metres."""

    modality: ClassVar[str] = "depth"

    def __init__(self, source: ModelSource, settings: LabellerSettings) -> None:
        super().__init__(source, settings)
        self.model = load_transformers(DepthAnythingForDepthEstimation, source, self.dtype)
        self.processor = load_processor(AutoImageProcessor, source)
        self.metric = self.model.config.depth_estimation_type == "metric"
        # Metres in steps of a millimetre, or of more where the range needs it (80 m outdoors: 2 mm).
        self.depth_scale = 0.001 * math.ceil(self.model.config.max_depth / 65.535) if self.metric else RELATIVE_SCALE

    @torch.no_grad()
    def label(self, images: Sequence[np.ndarray], ids: Sequence[str]) -> list[np.ndarray]:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device, self.dtype)
        outputs = self.model(**inputs)
        outputs.predicted_depth = outputs.predicted_depth.float()
        sizes = [image.shape[:2] for image in images]
        found = self.processor.post_process_depth_estimation(outputs, target_sizes=sizes)
        maps = [entry["predicted_depth"].cpu().numpy().reshape(size) for entry, size in zip(found, sizes, strict=True)]
        # Bicubic interpolation may fall below what the network gives, which is never negative.
        return [values.clip(min=0) for values in maps] if self.metric else [from_disparity(values) for values in maps]

    def facts(self) -> Mapping[str, Any]:
        return {"space": "depth" if self.metric else "disparity", "metric": self.metric}


class MarigoldDepthLabeller(Labeller):
    """Marigold depth (arXiv 2312.02145, 2505.09358) through diffusers; relative."""

    modality: ClassVar[str] = "depth"
    depth_scale = RELATIVE_SCALE

    def __init__(self, source: ModelSource, settings: LabellerSettings) -> None:
        super().__init__(source, settings)
        self.runner = MarigoldRunner(MarigoldDepthPipeline, source, self.dtype, settings.marigold)
        self.space = "disparity" if self.runner.pipeline.config.prediction_type == "disparity" else "depth"

    def to(self, device: torch.device) -> None:
        self.device = device
        self.runner.to(device)

    def label(self, images: Sequence[np.ndarray], ids: Sequence[str]) -> list[np.ndarray]:
        convert = from_disparity if self.space == "disparity" else from_relative_depth
        return [convert(prediction[..., 0]) for prediction in self.runner(images, ids)]

    def facts(self) -> Mapping[str, Any]:
        return {"space": self.space, "metric": False, **self.runner.facts()}
