"""What the pipeline returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.codec import Codec
from mmdit.modalities.depth import DEPTH_SPACE_KEY, DepthCodec
from mmdit.modalities.depth_values import invert_depth
from mmdit.modalities.pictures import uncertainty_picture


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
        uncertainty: with ``output_uncertainty=True``: modality -> float32 (N, H, W), where the ensemble disagrees, 0 = nowhere.
            depth: median distance to the median, of the whole range; normal: mean angle over π; segmentation: the share of
            other labels.
    """

    rgb: list[Image.Image] | np.ndarray | Tensor | None = None
    depth: np.ndarray | Tensor | None = None
    normal: np.ndarray | Tensor | None = None
    segmentation: np.ndarray | Tensor | None = None
    latents: Tensor | None = None
    uncertainty: dict[str, Any] | None = None

    @classmethod
    def from_modalities(
        cls, values: dict[str, Any], codecs: Mapping[str, Codec], uncertainty: dict[str, Any] | None = None
    ) -> MultimodalDiTPipelineOutput:
        """Build from name -> value, names without a field included; ``codecs`` of the model draw and save them."""
        own = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        output = cls(**own, uncertainty=uncertainty)
        for name in values.keys() - own.keys():
            output[name] = values[name]
        output._codecs = dict(codecs)
        return output

    def raw(self, name: str) -> np.ndarray:
        """Raw arrays of a modality, (N, H, W[, channels]): as with "np", but for RGB, which is uint8.

        Raises:
            UserError: a modality that is not there.
        """
        codecs: dict[str, Codec] = getattr(self, "_codecs", {})
        if name not in codecs:
            raise unknown_name("modality", name, codecs) if codecs else UserError("the output holds latents alone")
        value = self[name]
        if isinstance(value, list):
            return np.stack([np.asarray(image) for image in value])
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.permute(0, 2, 3, 1) if codecs[name].is_image else value).numpy()
        return codecs[name].from_output(value)

    def visualize(self, name: str, **settings: Any) -> list[Image.Image]:
        """Draw a modality for people, as the command line's ``*_vis.png`` and grids do. Raises UserError as ``raw``."""
        raw = self.raw(name)
        return [Image.fromarray(self._codecs[name].picture(each, **settings)) for each in raw]

    def visualize_depth(
        self, val_min: float = 0.0, val_max: float = 1.0, color_map: str | None = None
    ) -> list[Image.Image]:
        """Colour depth.

        Args:
            val_min, val_max: values that get the first and the last colour.
            color_map: None = ours, near is bright; "Spectral" (Marigold's, near is red), "binary", or one of matplotlib's.

        Raises:
            UserError: no range, an unknown map, or no depth.
        """
        return self.visualize("depth", val_min=val_min, val_max=val_max, color_map=color_map)

    def visualize_normal(self, flip_x: bool = False, flip_y: bool = False, flip_z: bool = False) -> list[Image.Image]:
        """Draw normals, (n + 1) / 2 x 255; flipped axes for other conventions. Raises UserError without normals."""
        return self.visualize("normal", flip=(flip_x, flip_y, flip_z))

    def visualize_uncertainty(self, name: str = "depth", saturation_percentile: float = 95) -> list[Image.Image]:
        """Draw where the ensemble disagrees, grey, white = from this percentile on, as in Marigold.

        Raises:
            UserError: there is no uncertainty of that modality.
        """
        known = self.uncertainty or {}
        if name not in known:
            have = f"of {', '.join(known)}" if known else "none: call with ensemble_size and output_uncertainty=True"
            raise UserError(f"no uncertainty of {name!r}; there is {have}")
        values = known[name].detach().cpu().numpy() if isinstance(known[name], Tensor) else known[name]
        return [Image.fromarray(uncertainty_picture(each, saturation_percentile)) for each in values]

    def export_depth_to_16bit_png(self, invert: bool = False) -> list[Image.Image]:
        """Depth as 16-bit images, 0 to 65535 in its own space, or with near and far exchanged.

        They come back rightly as ``conditions={"depth": image}``. The command line's ``depth.png`` has the same pixels, and a
        mark of the space. Raises UserError without depth.
        """
        images = []
        for each in self.raw("depth"):
            units = self._depth_codec.sixteen_bits(invert_depth(each) if invert else each)
            images.append(Image.fromarray(units))
            if not invert:
                images[-1].info[DEPTH_SPACE_KEY] = self._depth_codec.space
        return images

    def export_depth_to_exr(self) -> list[bytes]:
        """Depth as OpenEXR files, float32, one channel Y, with a mark of the space that our readers know.

        Raises:
            UserError: no depth, or the library is missing (extra ``exr``).
        """
        return [self._depth_codec.exr(each) for each in self.raw("depth")]

    @property
    def _depth_codec(self) -> DepthCodec:
        codec: DepthCodec = self._codecs["depth"]
        return codec
