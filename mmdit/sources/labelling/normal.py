"""Surface normals from Marigold, in the camera frame of this project: x right, y up, z towards the viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import MarigoldNormalsPipeline

from mmdit.modalities.normal import unit_vectors
from mmdit.sources.labelling.labeller import Labeller
from mmdit.sources.labelling.marigold import MarigoldRunner
from mmdit.sources.labelling.settings import LabellerSettings
from mmdit.sources.labelling.source import ModelSource


class MarigoldNormalsLabeller(Labeller):
    """Marigold normals (arXiv 2505.09358) through diffusers, whose frame is ours already."""

    modality: ClassVar[str] = "normal"

    def __init__(self, source: ModelSource, settings: LabellerSettings) -> None:
        super().__init__(source, settings)
        self.runner = MarigoldRunner(MarigoldNormalsPipeline, source, self.dtype, settings.marigold)

    def to(self, device: torch.device) -> None:
        self.device = device
        self.runner.to(device)

    def label(self, images: Sequence[np.ndarray], ids: Sequence[str]) -> list[np.ndarray]:
        # The pipeline normalises in its own dtype; half precision alone is not unit length to 8 bits.
        return [unit_vectors(prediction) for prediction in self.runner(images, ids)]

    def facts(self) -> Mapping[str, Any]:
        return self.runner.facts()
