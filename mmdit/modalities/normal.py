"""Surface normals in the camera frame: x right, y up, z towards the viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.modalities.codec import NOTHING, Codec, Raw, check_images, non_finite
from mmdit.modalities.files import npy, png
from mmdit.modalities.orientation import DIRECTIONS
from mmdit.modalities.reading import Reading
from mmdit.modalities.stored import Stored

# Rounded to 8 bits a component is off by up to 1/255, truncated by 2/255; the length by up to sqrt(3) of that.
UNIT_TOLERANCE = 0.015
# What a user gives may have been resized, which shortens the vectors at edges, or made by a network.
GIVEN_TOLERANCE = 0.15
MOST_WRONG = 0.5
SOME_WRONG = 0.1


class NormalCodec(Codec, name="normal"):
    """Surface normals: (H, W, 3) unit vectors in the camera frame, x right, y up, z towards the viewer.

    Input need not be exactly of unit length (8-bit files are not) and is normalised; (0, 0, 0) marks an invalid pixel
    and stays. Decodes to unit vectors; a vector too short to have a direction becomes (0, 0, 1). Files: 8 bits,
    (n + 1) / 2 x 255, or floats.
    """

    what: ClassVar[str] = "a normal map"
    channels: ClassVar[int | None] = 3
    value_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    metric: ClassVar[str] = "normal"
    reconstruction_term: ClassVar[str | None] = "cosine"
    bytes_per_pixel: ClassVar[int] = 15

    def encode(self, raw: Raw) -> Tensor:
        """Map vectors (H, W, 3) to unit vectors (3, H, W) float32; those shorter than 0.01 become (0, 0, 0).

        Raises:
            UserError: a wrong shape or type, NaN, infinity, or a vector longer than 2.
        """
        array = self.as_array(raw)
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"a normal map has type {array.dtype}: give floats, unit vectors in [-1, 1]")
        values = array.astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError("a normal map holds NaN or infinity: give unit vectors, or (0, 0, 0) where none is known")
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        if length.max() > 2:
            raise UserError(f"a normal map holds a vector of length {length.max():.3g}: give unit vectors in [-1, 1]")
        values = np.divide(values, length, out=np.zeros_like(values), where=length > 1e-2)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def decode(self, images: Tensor) -> np.ndarray:
        """Map (B, 3, H, W) to unit vectors (B, H, W, 3) float32."""
        vectors = check_images(images).permute(0, 2, 3, 1)
        length = vectors.norm(dim=-1, keepdim=True)
        viewer = torch.tensor([0.0, 0.0, 1.0], device=vectors.device).expand_as(vectors)
        return torch.where(length > 1e-6, vectors / length.clamp_min(1e-6), viewer).cpu().numpy()

    def flip(self, images: Tensor) -> Tensor:
        """Mirror encoded normals (..., 3, H, W) left to right; x changes its sign."""
        flipped = images.flip(-1)
        return torch.cat([-flipped[..., :1, :, :], flipped[..., 1:, :, :]], dim=-3)

    def ensemble(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean direction, and the mean angle to it over π, as in Marigold."""
        mean = members.astype(np.float64).mean(axis=0)
        length = np.linalg.norm(mean, axis=-1, keepdims=True)
        mean = np.where(length > 1e-6, mean / np.maximum(length, 1e-6), members[0])
        cosine = (members * mean).sum(axis=-1).clip(-1, 1)
        return mean.astype(np.float32), (np.arccos(cosine).mean(axis=0) / np.pi).astype(np.float32)

    def follow(self, before: np.ndarray | None, raw: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The weighted mean direction."""
        mean = super().follow(before, raw, weight)
        length = np.linalg.norm(mean, axis=-1, keepdims=True)
        return np.where(length > 1e-6, mean / np.maximum(length, 1e-6), raw).astype(np.float32)

    def fill_masked(self, array: np.ma.MaskedArray) -> np.ndarray:
        """(0, 0, 0) where any component is masked."""
        return np.where(np.ma.getmaskarray(array).any(axis=-1, keepdims=True), 0, array.data)

    def from_image(self, stored: Stored) -> np.ndarray:
        """Pixels of an 8-bit image as vectors (H, W, 3) float32 in [-1, 1]."""
        return self.pixels_of(stored, 8).astype(np.float32) / 127.5 - 1

    def drawing_colors(self) -> dict[str, tuple[int, int, int]]:
        """The directions that a surface may face, as ``picture`` shows them."""
        half = 0.5**0.5
        directions = {
            "towards the viewer": (0.0, 0.0, 1.0),
            "up": (0.0, 1.0, 0.0),
            "left": (-half, 0.0, half),
            "right": (half, 0.0, half),
            "up and left": (-half, half, 0.0),
            "up and right": (half, half, 0.0),
            "down": (0.0, -half, half),
        }
        return {name: tuple(self.picture(np.array(n)).tolist()) for name, n in directions.items()}

    def from_drawing(self, pixels: np.ndarray) -> Reading:
        """Colours as unit vectors; a colour without a direction faces the viewer."""
        vectors = unit_vectors(pixels.astype(np.float32) / 127.5 - 1)
        absent = ~vectors.any(axis=-1, keepdims=True)
        return Reading(np.where(absent, np.array([0, 0, 1], dtype=np.float32), vectors), as_seen=True)

    def check(self, reading: Reading) -> list[str]:
        """List what is wrong: vectors must have length 1 or 0, to within ``UNIT_TOLERANCE``."""
        array = reading.values
        if reasons := self.shape_reasons(array) or non_finite(array):
            return reasons
        with np.errstate(over="ignore"):  # an infinite length is not of unit length
            lengths = np.linalg.norm(array.astype(np.float32), axis=-1)
        absent = lengths < UNIT_TOLERANCE
        wrong = (np.abs(lengths - 1) > UNIT_TOLERANCE) & ~absent
        if wrong.any():
            worst = lengths[wrong][np.abs(lengths[wrong] - 1).argmax()]
            return [f"{int(wrong.sum())} normals are not of unit length: one has {worst:.3f}"]
        return ["no valid pixel: all are (0, 0, 0)"] if absent.all() else []

    def misread(self, raw: np.ndarray) -> list[str]:
        """Vectors that are far from unit length: most, or some where none has a negative component, as of (n + 1) / 2."""
        if raw.dtype.kind != "f":
            return []
        with np.errstate(over="ignore"):  # infinity is not of unit length, and ``encode`` refuses it
            lengths = np.linalg.norm(raw.astype(np.float32), axis=-1)
        lengths = lengths[lengths > 1e-2]
        wrong = float((np.abs(lengths - 1) > GIVEN_TOLERANCE).mean()) if lengths.size else 0.0
        if wrong > SOME_WRONG and raw.min() >= 0:
            return [
                "a normal map without a negative number looks like (n + 1) / 2: give 2 n - 1, unit vectors in [-1, 1]"
            ]
        if wrong > MOST_WRONG:
            return [
                f"a normal map has another length than 1 in {wrong:.0%} of its pixels: give unit vectors in [-1, 1]"
            ]
        return []

    def enlarge(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Enlarge between pixels, and scale to unit length again."""
        return unit_vectors(super().enlarge(raw, height, width))

    def resize_output(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Resize with antialiasing, and scale to unit length again."""
        if raw.shape[:2] == (height, width):
            return raw
        vectors = super().resize_output(raw, height, width)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)

    def turn(self, raw: np.ndarray, orientation: int) -> np.ndarray:
        """Turn the pixels as EXIF's tag says, and the vectors with them."""
        turned = np.array(super().turn(raw, orientation))
        turned[..., :2] = turned[..., :2] @ DIRECTIONS[orientation].T.astype(turned.dtype)
        return turned

    def picture(self, raw: np.ndarray, *, flip: Sequence[bool] = (False, False, False)) -> np.ndarray:
        """(n + 1) / 2 x 255, the layout of datasets; ``flip``: axes x, y, z that are turned round, for other conventions."""
        return self.pixels(np.where(np.asarray(flip), -raw, raw))

    def pixels(self, raw: np.ndarray, facts: Mapping[str, Any] = NOTHING) -> np.ndarray:
        """(n + 1) / 2 x 255, (H, W, 3) uint8."""
        return np.round((raw.astype(np.float64).clip(-1, 1) + 1) / 2 * 255).astype(np.uint8)

    def files(self, raw: np.ndarray) -> dict[str, bytes]:
        """Unit vectors (H, W, 3) as float32 ``.npy`` and as an 8-bit PNG."""
        return {f"{self.name}.npy": npy(raw.astype(np.float32)), f"{self.name}.png": png(self.picture(raw))}


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Scale (..., 3) to unit length in float32; what is shorter than 1e-3 has no direction and becomes (0, 0, 0)."""
    vectors = vectors.astype(np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-3)
