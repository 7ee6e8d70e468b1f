"""Depth from Depth Anything (V1, V2, metric versions of V2) and from Marigold; see ``mmdit.sources.relative_depth``."""

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
from mmdit.sources.relative_depth import RELATIVE_SCALE, from_disparity, from_relative_depth


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
