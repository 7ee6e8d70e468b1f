"""Base of modules that learn labels of pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmdit.modalities.segmentation import SegmentationCodec
from mmdit.training.frozen import Batch
from mmdit.training.module import SteppedModule
from mmdit.training.optimizers import OptimizerConfig


class LabelledModule(SteppedModule):
    """Trains a network on labels of pixels; the batch has ``segmentation`` (B, 3, H, W), the labels' colours.

    Args:
        network: what is trained.
        objective: the loss.
        segmentation: knows the labels by their colours.
        optimizer, seed, max_steps: as in ``SteppedModule``.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Any,
        segmentation: SegmentationCodec,
        *,
        optimizer: OptimizerConfig,
        seed: int,
        max_steps: int,
    ) -> None:
        super().__init__(network, optimizer=optimizer, seed=seed, max_steps=max_steps)
        self.objective, self.segmentation = objective, segmentation

    def labels(self, batch: Batch) -> Tensor:
        """(B, H, W), rows of the codec's palette."""
        return self.segmentation.rows(batch["segmentation"])
