"""Masks of boxes by SAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForMaskGeneration

from mmdit.sources.labelling.network import FrozenNetwork, load_processor, load_transformers
from mmdit.sources.labelling.source import ModelSource
from mmdit.sources.prompts.detection import Box

# Published SAM 2 checkpoints say that they are of the video model; the image model is a part of it.
SEGMENTERS: dict[str, Any] = {
    "sam": transformers.SamProcessor,
    "sam_hq": transformers.SamHQProcessor,
    "sam2": transformers.Sam2Processor,
    "sam2_video": transformers.Sam2Processor,
}


class Segmenter(FrozenNetwork):
    """SAM (arXiv 2304.02643) or SAM 2 (2408.00714): the mask of what is in a box.

    Args:
        source: where the weights are.
        dtype: that it runs in.
    """

    def __init__(self, source: ModelSource, dtype: str) -> None:
        super().__init__(source, dtype)
        self.model = load_transformers(AutoModelForMaskGeneration, source, self.dtype)
        self.processor = load_processor(SEGMENTERS[source.kind], source)

    @torch.no_grad()
    def segment(self, image: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
        """Segment an image (H, W, 3) uint8: -> a mask (H, W) bool for each box."""
        if not boxes:
            return []
        height, width = image.shape[:2]
        corners = [[float(value) for value in box.pixels(height, width)] for box in boxes]
        inputs = self.processor(image, input_boxes=[corners], return_tensors="pt")
        tensors = {name: inputs[name].to(self.device, self.dtype) for name in ("pixel_values", "input_boxes")}
        masks = self.model(**tensors, multimask_output=False).pred_masks.float().cpu()
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        (found,) = self.processor.post_process_masks(masks, *sizes)  # (boxes, 1, H, W)
        return [mask[0].numpy().astype(bool) for mask in found]
