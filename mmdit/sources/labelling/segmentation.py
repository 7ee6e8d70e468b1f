"""Segmentation: masks without classes from SAM and SAM 2, classes from Mask2Former and OneFormer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForMaskGeneration,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
    MaskGenerationPipeline,
)

from mmdit.errors import UserError
from mmdit.modalities.palette import class_palette, generic_palette
from mmdit.sources.labelling.labeller import Labeller
from mmdit.sources.labelling.network import load_processor, load_transformers
from mmdit.sources.labelling.settings import LabellerSettings
from mmdit.sources.labelling.source import ModelSource

NUM_SEGMENTS = 63  # with "unlabelled" the 64 colours that the generic palette keeps apart


def paint_segments(masks: Sequence[np.ndarray], shape: tuple[int, int], sample_id: str) -> np.ndarray:
    """Masks that may overlap -> one label map: the larger below, the smaller on top.

    Which label (so which colour) a segment has is drawn from a hash of the sample's id: stable from run to run, and no
    label means "large" or "left" across a dataset. Beyond 63 masks the smallest are left out.

    Args:
        masks: (H, W) bool each.
        shape: (H, W).
        sample_id: the sample's path in the folder.

    Returns:
        (H, W) int64, 0 = in no mask, else 1 to 63.
    """
    labels = np.zeros(shape, dtype=np.int64)
    # By hashes alone: a random generator's stream may change with the library's version.
    ids = sorted(range(1, NUM_SEGMENTS + 1), key=lambda label: sha256(f"{sample_id}:{label}".encode()).digest())
    kept = [np.asarray(mask, dtype=bool) for mask in masks]
    # Ties of area are broken by where a mask begins, so the order the network gave them in does not matter.
    kept.sort(key=lambda mask: (-int(mask.sum()), int(mask.argmax())))
    for number, mask in enumerate(kept[:NUM_SEGMENTS]):
        labels[mask] = ids[number]
    return labels


class _FloatScores(MaskGenerationPipeline):
    """The suppression of duplicates compares scores with boxes, which are float32 whatever the network's dtype."""

    def _forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        outputs = super()._forward(*args, **kwargs)
        return outputs | {"iou_scores": outputs["iou_scores"].float(), "boxes": outputs["boxes"].float()}


class MaskGenerationLabeller(Labeller):
    """SAM (arXiv 2304.02643) or SAM 2 (2408.00714) on a grid of points, by transformers' mask-generation pipeline."""

    modality: ClassVar[str] = "segmentation"

    def __init__(self, source: ModelSource, settings: LabellerSettings) -> None:
        super().__init__(source, settings)
        self.settings = settings.masks
        for option in ("points_per_side", "points_per_batch"):
            if getattr(self.settings, option) < 1:
                raise UserError(f"--masks.{option} is {getattr(self.settings, option)}: give at least 1")
        self.model = load_transformers(AutoModelForMaskGeneration, source, self.dtype)
        self.processor = load_processor(AutoImageProcessor, source)
        self.classes = [
            {"id": i, "name": f"segment {i}" if i else "unlabelled", "color": color.tolist()}
            for i, color in enumerate(generic_palette(NUM_SEGMENTS + 1))
        ]
        self.to(self.device)

    def to(self, device: torch.device) -> None:
        self.device = device
        self.pipeline = _FloatScores(model=self.model.to(device), image_processor=self.processor, device=device)

    @torch.no_grad()
    def label(self, images: Sequence[np.ndarray], ids: Sequence[str]) -> list[np.ndarray]:
        found = []
        for image, sample_id in zip(images, ids, strict=True):
            output = self.pipeline(
                Image.fromarray(image),
                points_per_crop=self.settings.points_per_side,  # transformers' name for the side of the grid
                points_per_batch=self.settings.points_per_batch,
                pred_iou_thresh=self.settings.iou_threshold,
                stability_score_thresh=self.settings.stability_threshold,
            )
            masks = [mask.cpu().numpy() if isinstance(mask, torch.Tensor) else mask for mask in output["masks"]]
            found.append(paint_segments(masks, image.shape[:2], sample_id))
        return found

    def facts(self) -> Mapping[str, Any]:
        return {
            "points_per_side": self.settings.points_per_side,
            "iou_threshold": self.settings.iou_threshold,
            "stability_threshold": self.settings.stability_threshold,
        }


class UniversalSegmentationLabeller(Labeller):
    """Semantic classes from MaskFormer (2107.06278), Mask2Former (2112.01527) or OneFormer (2211.06220)."""

    modality: ClassVar[str] = "segmentation"

    def __init__(self, source: ModelSource, settings: LabellerSettings) -> None:
        super().__init__(source, settings)
        self.model = load_transformers(AutoModelForUniversalSegmentation, source, self.dtype)
        self.takes_task = source.kind == "oneformer"
        self.processor = load_processor(AutoProcessor if self.takes_task else AutoImageProcessor, source)
        names = {int(i): str(name) for i, name in self.model.config.id2label.items()}
        colors = class_palette(len(names))
        self.classes = [
            {"id": i, "name": name, "color": color.tolist()}
            for (i, name), color in zip(sorted(names.items()), colors, strict=True)
        ]

    @torch.no_grad()
    def label(self, images: Sequence[np.ndarray], ids: Sequence[str]) -> list[np.ndarray]:
        task = {"task_inputs": ["semantic"] * len(images)} if self.takes_task else {}
        inputs = self.processor(images=list(images), return_tensors="pt", **task).to(self.device, self.dtype)
        outputs = self.model(**inputs)
        for logits in ("class_queries_logits", "masks_queries_logits"):
            outputs[logits] = outputs[logits].float()
        found = self.processor.post_process_semantic_segmentation(
            outputs, target_sizes=[image.shape[:2] for image in images]
        )
        return [labels.cpu().numpy().astype(np.int64) for labels in found]
