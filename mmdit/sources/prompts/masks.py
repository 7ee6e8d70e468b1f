"""Masks of boxes by SAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForMaskGeneration

from mmdit.sources.labelling.network import FrozenNetwork, join_equal, load_processor, load_transformers
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
    def segment(self, images: Sequence[np.ndarray], boxes: Sequence[Sequence[Box]]) -> list[list[np.ndarray]]:
        """Segment images (H, W, 3) uint8: -> a mask (H, W) bool for each box of an image.

        Images go through the network together where it sees them in one size. It decodes each box by itself, so an image with
        fewer boxes than another repeats its last, and a mask depends on the other images by rounding alone.
        """
        found: list[list[np.ndarray]] = [[] for _ in images]
        asked = [number for number, each in enumerate(boxes) if each]
        most = max((len(boxes[number]) for number in asked), default=0)
        for group, inputs in join_equal([self._prepare(images[number], boxes[number], most) for number in asked]):
            tensors = {name: inputs[name].to(self.device, self.dtype) for name in ("pixel_values", "input_boxes")}
            masks = self.model(**tensors, multimask_output=False).pred_masks.float().cpu()  # (images, boxes, 1, h, w)
            sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
            for each, whole in zip(group, self.processor.post_process_masks(masks, *sizes), strict=True):
                count = len(boxes[asked[each]])
                found[asked[each]] = [mask[0].numpy().astype(bool) for mask in whole[:count]]  # whole: (boxes, 1, H, W)
        return found

    def _prepare(self, image: np.ndarray, boxes: Sequence[Box], count: int) -> Any:
        height, width = image.shape[:2]
        corners = [[float(value) for value in box.pixels(height, width)] for box in boxes]
        corners += corners[-1:] * (count - len(corners))
        return self.processor(image, input_boxes=[corners], return_tensors="pt")
