"""Photographs and other pictures: (H, W, 3) uint8, or floats in [0, 1]."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdit.colours import HUES
from mmdit.errors import UserError
from mmdit.modalities.codec import DEEP_GREY, NOTHING, Codec, Output, Raw, check_images
from mmdit.modalities.files import png
from mmdit.modalities.reading import Reading
from mmdit.modalities.stored import Stored

_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")


class RGBCodec(Codec, name="rgb"):
    """Raw: (H, W, 3) uint8, or floats in [0, 1]. Decodes to uint8."""

    what: ClassVar[str] = "an RGB image"
    channels: ClassVar[int | None] = 3
    is_image: ClassVar[bool] = True
    metric: ClassVar[str] = "psnr"
    bytes_per_pixel: ClassVar[int] = 3
    array_files: ClassVar[bool] = False

    def encode(self, raw: Raw) -> Tensor:
        """Map (H, W, 3), uint8 or floats in [0, 1], to (3, H, W) float32 in [-1, 1]. Raises UserError for others."""
        array = self.as_array(raw)
        if array.dtype == np.uint8:
            values = array.astype(np.float32) / 127.5 - 1
        elif np.issubdtype(array.dtype, np.floating):
            if reasons := self._range_reasons(array):
                raise UserError(f"an RGB image of floats {reasons[0]}, or uint8")
            values = array.astype(np.float32) * 2 - 1
        else:
            raise UserError(f"an RGB image has type {array.dtype}: give uint8, or floats in [0, 1]")
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def decode(self, images: Tensor) -> np.ndarray:
        """Map (B, 3, H, W), clipped to [-1, 1], to (B, H, W, 3) uint8."""
        values = (check_images(images).clamp(-1, 1) + 1) * 127.5
        return values.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def from_image(self, stored: Stored) -> np.ndarray:
        """Any mode -> (H, W, 3) uint8: 16-bit grey is scaled, transparency is laid over white."""
        image = stored.image
        assert image is not None
        if image.mode in DEEP_GREY:
            values = np.asarray(image).astype(np.float64)
            top = 65535.0 if values.max(initial=0) > 255 or image.mode != "I" else 255.0
            return np.round(values.clip(0, top) * (255 / top)).astype(np.uint8)[..., None].repeat(3, axis=2)
        if image.mode == "F":
            raise stored.error("an RGB image of 32-bit floats has no known range: save it with 8 or 16 bits")
        if image.mode in _TRANSPARENT or "transparency" in image.info:
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        return np.asarray(image.convert("RGB"))

    def from_array(self, stored: Stored) -> np.ndarray:
        """The array unchanged; ``encode`` judges it."""
        assert stored.array is not None
        return stored.array

    def drawing_colors(self) -> dict[str, tuple[int, int, int]]:
        """Hues, greys and white paper."""
        hues = {
            name: tuple(
                round(255 * c) for c in colorsys.hsv_to_rgb((low + ((high - low) % 360) / 2) % 360 / 360, 0.8, 0.9)
            )
            for name, (low, high) in HUES.items()
        }
        greys = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
        return {**greys, **hues}  # type: ignore[dict-item]

    def from_drawing(self, pixels: np.ndarray) -> Reading:
        """The drawing itself."""
        return Reading(pixels, as_seen=True)

    def check(self, reading: Reading) -> list[str]:
        """List what is wrong with an image: it must be (H, W, 3) uint8."""
        array = reading.values
        if array.dtype == np.uint8 and not self.shape_reasons(array):
            return []
        return [f"holds {array.dtype} of shape {array.shape}: must be an 8-bit image"]

    def resize(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Lanczos, with antialiasing."""
        if raw.shape[:2] == (height, width):
            return raw
        pixels = raw if raw.dtype == np.uint8 else self.decode(self.encode(raw)[None])[0]
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))

    def resize_output(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Bilinear, with antialiasing, (H, W, 3) uint8."""
        if raw.shape[:2] == (height, width):
            return raw
        return np.asarray(Image.fromarray(raw).resize((width, height), Image.Resampling.BILINEAR))

    def enlarge(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Lanczos, as ``resize``."""
        return self.resize(raw, height, width)

    def from_output(self, values: Any) -> np.ndarray:
        """Floats in [0, 1] back to uint8."""
        return (np.asarray(values) * 255).round().astype(np.uint8)

    def output(self, raw: np.ndarray, output_type: str, device: torch.device | str = "cpu") -> Output:
        """ "pil": images; "np": (N, H, W, 3) in [0, 1]; "pt": (N, 3, H, W) in [0, 1], as in diffusers."""
        if output_type == "pil":
            return [Image.fromarray(image) for image in raw]
        values = raw.astype(np.float32) / 255
        if output_type == "np":
            return values
        return torch.from_numpy(values).to(device).permute(0, 3, 1, 2).contiguous()

    def picture(self, raw: np.ndarray) -> np.ndarray:
        """The image itself."""
        return raw

    def pixels(self, raw: np.ndarray, facts: Mapping[str, Any] = NOTHING) -> np.ndarray:
        """The image itself, contiguous."""
        return np.ascontiguousarray(raw)

    def files(self, raw: np.ndarray) -> dict[str, bytes]:
        """(H, W, 3) uint8 as a PNG."""
        return {f"{self.name}.png": png(raw)}

    def file_names(self) -> frozenset[str]:
        """The name of the PNG."""
        return frozenset({f"{self.name}.png"})


def read_picture(path: str | Path) -> np.ndarray:
    """Read any image as (H, W, 3) uint8; raises UserError like ``Codec.read``."""
    return RGBCodec().read(path).values


WHITE = 255  # around a subject that is cut out


def on_white(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) uint8 where ``mask`` (H, W) bool is True, white elsewhere."""
    return np.where(mask[..., None], pixels, WHITE).astype(np.uint8)
