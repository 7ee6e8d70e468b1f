"""How the pipelines of prompts run: plain numbers that the command line, the pipelines and the provenance share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmdit.bounds import ClosedUnitInterval, NonNegativeInt, NonNegativeNumber, PositiveInt, TokenCount
from mmdit.sources.labelling.settings import DtypeName


@dataclass(frozen=True)
class CropSettings:
    """Of the pipeline "crops": what UMM-Diffusion (arXiv 2303.09319) drops.

    Args:
        min_side: Images whose shorter side has fewer pixels are left out.
        min_area: Boxes that cover a smaller share of the image are dropped.
        min_score: Least score of a box, of the detector.
        several: Keep a label that has several boxes, by its best one; by default it is dropped.
    """

    min_side: NonNegativeInt = 512
    min_area: ClosedUnitInterval = 0.1
    min_score: ClosedUnitInterval = 0.5
    several: bool = False


@dataclass(frozen=True)
class InterleavedSettings:
    """Of the pipeline "interleaved".

    Args:
        max_entities: Most entities of an image: those that the caption names first.
        min_score: Least score of an entity's box, of Grounding DINO.
        min_area: Masks that cover a smaller share of the image are dropped.
    """

    max_entities: PositiveInt = 8
    min_score: ClosedUnitInterval = 0.3
    min_area: ClosedUnitInterval = 0.0


@dataclass(frozen=True)
class QualitySettings:
    """Which images are left out because of what CLIP says of them; without a model none are.

    UNIMO-G (arXiv 2401.13388) keeps aesthetic scores above 6.5 and CLIP scores above 0.5.

    Args:
        clip: CLIP model: folder or Hub id, such as openai/clip-vit-large-patch14.
        min_clip_score: Of the caption that fits best, as 2.5 x cosine (CLIPScore, arXiv 2104.08718): 0.5 is a cosine of 0.2.
            Cosines of CLIP seldom exceed 0.35, so 0.5 can't be one.
        aesthetics: Safetensors file of a linear head on the CLIP embedding, such as LAION's; it must be of that CLIP model.
        min_aesthetics: Least score of that head, 1 to 10.
    """

    clip: str | None = None
    min_clip_score: NonNegativeNumber = 0.5
    aesthetics: Path | None = None
    min_aesthetics: NonNegativeNumber = 6.5


@dataclass(frozen=True)
class PromptSettings:
    """All of the above, the dtype that networks run in, and the most tokens of a caption that a model writes."""

    crops: CropSettings = field(default_factory=CropSettings)
    interleaved: InterleavedSettings = field(default_factory=InterleavedSettings)
    quality: QualitySettings = field(default_factory=QualitySettings)
    max_new_tokens: TokenCount = 96
    dtype: DtypeName = "float32"
