"""What every labeller is: RGB in, one modality's raw maps out, with all that the dataset must say about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mmdit.sources.labelling.network import FrozenNetwork
from mmdit.sources.labelling.settings import LabellerSettings
from mmdit.sources.labelling.source import ModelSource


class Labeller(FrozenNetwork, ABC):
    """A frozen network that labels images. A label depends on its image and id alone, not on the batch it is in.

    Args:
        source: where the weights are.
        settings: how it runs. Labels are float32 or int64 whatever the network's dtype.

    Attributes: ``modality``; ``depth_scale``, metres per unit of the 16-bit file (depth only); ``classes``, as in
    dataset.json (segmentation only).
    """

    modality: ClassVar[str]
    depth_scale: float | None = None
    classes: list[dict[str, Any]] | None = None

    def __init__(self, source: ModelSource, settings: LabellerSettings) -> None:
        super().__init__(source, settings.dtype)

    @abstractmethod
    def label(self, images: Sequence[np.ndarray], ids: Sequence[str]) -> list[np.ndarray]:
        """Label images of one size.

        Args:
            images: (H, W, 3) uint8 each.
            ids: of the samples: where a labeller draws random numbers, the id seeds them.

        Returns:
            depth: (H, W) float32; normal: (H, W, 3) float32; segmentation: (H, W) int64.
        """
