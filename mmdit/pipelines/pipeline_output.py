"""What the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor


@dataclass
class MultimodalDiTPipelineOutput(BaseOutput):
    """Aligned outputs of ``MultimodalDiTPipeline``, N samples of H x W pixels; given modalities included.

    A modality that the model lacks is None. A model may have others than these fields: each is a key and an attribute of
    the output too. With ``output_type="pt"`` arrays are tensors of the same layout, except for ``rgb``.

    Args:
        rgb: list of N PIL images; "np": float32 (N, H, W, 3) in [0, 1]; "pt": float32 (N, 3, H, W) in [0, 1].
        depth: float32 (N, H, W), relative depth in [0, 1], in the space that ``pipe.modalities["depth"]`` names:
            "depth" (1 = far) or "disparity" (1 = near).
        normal: float32 (N, H, W, 3), unit vectors in the camera frame: x right, y up, z towards the viewer.
        segmentation: int64 (N, H, W), label ids of the classes in ``pipe.modalities["segmentation"]``.
        latents: (N, M, C, h, w), with ``output_type="latent"`` only, and then the only field; a given modality has its
            clean latents.
    """

    rgb: list[Image.Image] | np.ndarray | Tensor | None = None
    depth: np.ndarray | Tensor | None = None
    normal: np.ndarray | Tensor | None = None
    segmentation: np.ndarray | Tensor | None = None
    latents: Tensor | None = None

    @classmethod
    def from_modalities(cls, values: dict[str, Any]) -> MultimodalDiTPipelineOutput:
        """Build from name -> value, names without a field included."""
        own = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        output = cls(**own)
        for name in values.keys() - own.keys():
            output[name] = values[name]
        return output
