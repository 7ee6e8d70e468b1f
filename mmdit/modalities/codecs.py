"""Codecs: a modality's raw array <-> three channels in [-1, 1], what the VAE reads and writes.

Shapes: H, W pixels; B images. ``encode`` takes one raw array (H, W[, 3]) and returns (3, H, W) float32;
``decode`` takes (B, 3, H, W) and returns a numpy batch of the raw type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.modality import Modality
from mmdit.names import DEPTH_SPACES

Raw = np.ndarray | Tensor


class Codec(Protocol):
    """What every codec offers. ``resample`` names how raw arrays are resized: "area" (antialiased) or "nearest"."""

    resample: ClassVar[str]

    def encode(self, raw: Raw) -> Tensor:
        """Map raw values (H, W[, 3]) to (3, H, W) float32 in [-1, 1]; UserError for a wrong shape, type or range."""
        ...

    def decode(self, images: Tensor) -> np.ndarray:
        """Map (B, 3, H, W), clipped to [-1, 1] where that matters, to raw values (B, H, W[, 3])."""
        ...

    def flip(self, images: Tensor) -> Tensor:
        """Mirror encoded images (..., 3, H, W) left to right, signs included."""
        ...


def _as_array(raw: Raw) -> np.ndarray:
    return raw.detach().cpu().numpy() if isinstance(raw, Tensor) else np.asarray(raw)


def _three_channels(raw: Raw, what: str) -> np.ndarray:
    array = _as_array(raw)
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(f"{what} has shape {tuple(array.shape)}: give (height, width, 3)")
    return array


def _one_channel(raw: Raw, what: str) -> np.ndarray:
    array = _as_array(raw)
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(f"{what} has shape {tuple(array.shape)}: give (height, width)")
    return array


def _check_images(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images to decode have shape {tuple(images.shape)}: give (batch, 3, height, width)")
    return images.detach().float()


class RGBCodec:
    """Raw: (H, W, 3) uint8, or floats in [0, 1]. Decodes to uint8."""

    resample = "area"

    def encode(self, raw: Raw) -> Tensor:
        array = _three_channels(raw, "an RGB image")
        if array.dtype == np.uint8:
            values = array.astype(np.float32) / 127.5 - 1
        elif np.issubdtype(array.dtype, np.floating):
            if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
                raise UserError(
                    f"an RGB image of floats spans [{array.min()}, {array.max()}]: give values in [0, 1], or uint8"
                )
            values = array.astype(np.float32) * 2 - 1
        else:
            raise UserError(f"an RGB image has type {array.dtype}: give uint8, or floats in [0, 1]")
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def decode(self, images: Tensor) -> np.ndarray:
        values = (_check_images(images).clamp(-1, 1) + 1) * 127.5
        return values.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def flip(self, images: Tensor) -> Tensor:
        return images.flip(-1)


class DepthCodec:
    """Depth as an affine-invariant map: each image's own quantiles become -1 and 1, and values beyond are clipped.

    Args:
        space: "disparity" (1 / metres; near = 1) or "depth" (metres; far = 1).
        quantiles: (low, high) of an image's valid pixels in that space, from 0 to 1.

    ``encode`` reads z-depth in metres, where 0, negative and non-finite values are invalid; they are filled with the
    far end. With ``relative=True`` it reads a map that is already in the codec's space and known up to scale and shift,
    like the output of ``decode``: there 0 is a value, and only non-finite pixels are invalid.
    ``decode`` gives relative values in [0, 1] in the codec's space.
    """

    resample = "nearest"

    def __init__(self, space: str = "disparity", quantiles: Sequence[float] = (0.02, 0.98)) -> None:
        if space not in DEPTH_SPACES:
            raise unknown_name("depth space", space, DEPTH_SPACES)
        if len(quantiles) != 2 or not 0 <= quantiles[0] < quantiles[1] <= 1:
            raise UserError(f"depth quantiles are {list(quantiles)}: give two rising numbers from 0 to 1")
        self.space = space
        self.quantiles = (float(quantiles[0]), float(quantiles[1]))

    def encode(self, raw: Raw, relative: bool = False) -> Tensor:
        array = _one_channel(raw, "a depth map")
        if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
            raise UserError(f"a depth map has type {array.dtype}: give numbers")
        values = array.astype(np.float64)
        valid = np.isfinite(values) if relative else np.isfinite(values) & (values > 0)
        if not valid.any():
            raise UserError(
                "a depth map has no valid pixel: "
                + ("all are NaN or infinite" if relative else "all are 0, NaN or infinite")
            )
        inverted = self.space == "disparity"
        if inverted and not relative:
            values = np.divide(1.0, values, out=np.zeros_like(values), where=valid)
        low, high = np.quantile(values[valid], self.quantiles)
        scaled = np.zeros_like(values)  # a constant map has no scale; it sits in the middle
        if high - low > 1e-7 * max(abs(low), abs(high)):
            scaled = 2 * (values - low) / (high - low) - 1
        scaled = np.where(valid, scaled, -1.0 if inverted else 1.0)
        return torch.from_numpy(scaled.clip(-1, 1).astype(np.float32)).expand(3, -1, -1).contiguous()

    def decode(self, images: Tensor) -> np.ndarray:
        return ((_check_images(images).mean(dim=1).clamp(-1, 1) + 1) / 2).cpu().numpy()

    def flip(self, images: Tensor) -> Tensor:
        return images.flip(-1)


class NormalCodec:
    """Surface normals: (H, W, 3) unit vectors in the camera frame, x right, y up, z towards the viewer.

    Input need not be exactly of unit length (8-bit files are not) and is normalised; (0, 0, 0) marks an invalid pixel
    and stays. Decodes to unit vectors; a vector too short to have a direction becomes (0, 0, 1).
    """

    resample = "nearest"

    def encode(self, raw: Raw) -> Tensor:
        array = _three_channels(raw, "a normal map")
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"a normal map has type {array.dtype}: give floats, unit vectors in [-1, 1]")
        values = array.astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError("a normal map holds NaN or infinity: give unit vectors, or (0, 0, 0) where there is none")
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        if length.max() > 2:
            raise UserError(f"a normal map holds a vector of length {length.max():.3g}: give unit vectors in [-1, 1]")
        values = np.divide(values, length, out=np.zeros_like(values), where=length > 1e-2)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def decode(self, images: Tensor) -> np.ndarray:
        vectors = _check_images(images).permute(0, 2, 3, 1)
        length = vectors.norm(dim=-1, keepdim=True)
        viewer = torch.tensor([0.0, 0.0, 1.0], device=vectors.device).expand_as(vectors)
        return torch.where(length > 1e-6, vectors / length.clamp_min(1e-6), viewer).cpu().numpy()

    def flip(self, images: Tensor) -> Tensor:
        flipped = images.flip(-1)
        return torch.cat([-flipped[..., :1, :, :], flipped[..., 1:, :, :]], dim=-3)


def class_palette(num_colors: int) -> np.ndarray:
    """Return (num_colors, 3) uint8 of the coarsest RGB grid that has so many; each far from those before it, black first.

    Up to 64 it is ``generic_palette``.
    """
    steps = max(4, int(np.ceil(num_colors ** (1 / 3) - 1e-9)))
    levels = np.linspace(0, 255, steps).round().astype(np.int64)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = [0]
    distance = ((grid - grid[0]) ** 2).sum(axis=1)
    while len(chosen) < num_colors:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((grid - grid[chosen[-1]]) ** 2).sum(axis=1))
    return grid[chosen].astype(np.uint8)


def generic_palette(num_colors: int = 64) -> np.ndarray:
    """Return (num_colors, 3) uint8, at least 85 apart: a 4 x 4 x 4 grid, each colour far from those before it."""
    if not 1 <= num_colors <= 64:
        raise UserError(f"the generic palette has 64 colours, not {num_colors}: give every class its own colour")
    return class_palette(num_colors)


class SegmentationCodec:
    """Labels as colours, decoded by the nearest colour of the palette.

    Args:
        classes: one {"id", "name", "color": [r, g, b] in 0..255} per label, as in dataset.json; None = ids 0 to 63 with
            the generic palette.

    Attributes, row by row: ``ids`` (K,) int64; ``names``; ``colors`` (K, 3) uint8; ``palette`` (K, 3) in [-1, 1].
    """

    resample = "nearest"

    def __init__(self, classes: Sequence[Mapping[str, Any]] | None = None) -> None:
        if classes is None:
            colors = generic_palette()
            classes = [{"id": i, "name": f"class {i}", "color": color.tolist()} for i, color in enumerate(colors)]
        if not classes:
            raise UserError("segmentation classes are an empty list: give at least one {id, name, color}")
        for entry in classes:
            color = entry.get("color", ())
            if "id" not in entry or "name" not in entry or len(color) != 3 or not all(0 <= c <= 255 for c in color):
                raise UserError(f"segmentation class {dict(entry)}: give id, name and color as [r, g, b] from 0 to 255")
        self.names = [str(entry["name"]) for entry in classes]
        self.ids = torch.tensor([int(entry["id"]) for entry in classes])
        self.colors = np.array([entry["color"] for entry in classes], dtype=np.uint8)
        if len(set(self.ids.tolist())) < len(classes) or len(np.unique(self.colors, axis=0)) < len(classes):
            raise UserError("two segmentation classes share an id or a colour: make each unique")
        if int(self.ids.min()) < 0:
            raise UserError(f"segmentation class id {int(self.ids.min())} is negative: give ids from 0")
        self.palette = torch.from_numpy(self.colors.astype(np.float32) / 127.5 - 1)
        self._row_of_id = np.full(int(self.ids.max()) + 1, -1, dtype=np.int64)
        self._row_of_id[self.ids.numpy()] = np.arange(len(classes))

    def encode(self, raw: Raw) -> Tensor:
        array = _one_channel(raw, "a segmentation map")
        if not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"a segmentation map has type {array.dtype}: give integer label ids")
        labels = array.astype(np.int64)
        rows = np.where((labels >= 0) & (labels < len(self._row_of_id)), labels, 0)
        rows = self._row_of_id[rows]
        unknown = (labels < 0) | (labels >= len(self._row_of_id)) | (rows < 0)
        if unknown.any():
            listed = ", ".join(str(i) for i in self.ids.tolist()[:12]) + (", …" if len(self.ids) > 12 else "")
            raise UserError(
                f"a segmentation map holds the unknown label {int(labels[unknown][0])}: known ids are {listed}"
            )
        return self.palette[torch.from_numpy(rows)].permute(2, 0, 1).contiguous()

    def logits(self, images: Tensor) -> Tensor:
        """Minus the squared distance to each palette colour, (B, 3, H, W) -> (B, K, H, W); its argmax decodes."""
        palette = self.palette.to(images)
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2
        cross = torch.einsum("bchw,kc->bkhw", images, palette)
        return 2 * cross - palette.square().sum(dim=1)[:, None, None] - images.square().sum(dim=1, keepdim=True)

    def decode(self, images: Tensor) -> np.ndarray:
        return self.ids[self.logits(_check_images(images)).argmax(dim=1).cpu()].numpy()

    def flip(self, images: Tensor) -> Tensor:
        return images.flip(-1)


CODECS: dict[str, type] = {
    "rgb": RGBCodec,
    "depth": DepthCodec,
    "normal": NormalCodec,
    "segmentation": SegmentationCodec,
}


def build_codec(modality: Modality) -> Any:
    """Build the ``Codec`` that a modality names, with its settings; UserError for an unknown codec or setting."""
    if modality.codec not in CODECS:
        raise unknown_name("codec", modality.codec, CODECS)
    try:
        return CODECS[modality.codec](**modality.settings)
    except TypeError as error:
        raise UserError(
            f"modality {modality.name!r}: settings {dict(modality.settings)} do not fit its codec: {error}"
        ) from None
