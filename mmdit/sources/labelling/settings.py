"""How labellers run: plain numbers that the command line, the labellers and the provenance share. Nothing heavy here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DtypeName = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class MarigoldSettings:
    """Of Marigold's pipelines; None = what the model's own config says.

    Args:
        steps: Denoising steps.
        ensemble_size: Predictions that are combined: more is better and slower.
        processing_resolution: Longer side that images are resized to; 0 = as they are.
    """

    steps: int | None = None
    ensemble_size: int = 1
    processing_resolution: int | None = None


@dataclass(frozen=True)
class MaskSettings:
    """Of SAM's mask generation.

    Args:
        points_per_side: Prompts are a grid of so many points squared.
        points_per_batch: Points at a time.
        iou_threshold: Least predicted quality of a mask that is kept.
        stability_threshold: Least stability of a mask that is kept.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    iou_threshold: float = 0.88
    stability_threshold: float = 0.95


@dataclass(frozen=True)
class LabellerSettings:
    """All of the above, and the dtype that networks run in."""

    dtype: DtypeName = "float32"
    marigold: MarigoldSettings = field(default_factory=MarigoldSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
