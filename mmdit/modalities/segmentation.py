"""Label maps: every pixel the id of a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError
from mmdit.modalities.codec import DEEP_GREY, NOTHING, Codec, Raw, check_images
from mmdit.modalities.files import png
from mmdit.modalities.palette import generic_palette
from mmdit.modalities.reading import Reading
from mmdit.modalities.stored import Stored
from mmdit.storage.json_text import has_surrogate, quoted

_MAX_ID = 65535  # of a 16-bit image
_SAME_COLOR = 3 * 4**2  # squared distance of RGB: what a canvas may round
_CLASS_FORM = '{"id": 0..65535, "name": text, "color": [three of 0..255]}'


class SegmentationCodec(Codec, name="segmentation"):
    """Labels as colours, decoded by the nearest colour of the palette.

    Args:
        classes: one {"id", "name", "color": [r, g, b] in 0..255} per label, as in dataset.json; None = ids 0 to 63 with
            the generic palette.

    Attributes, row by row: ``ids`` (K,) int64; ``names``; ``colors`` (K, 3) uint8; ``palette`` (K, 3) in [-1, 1].
    Files: images of one channel, 8 or 16 bits, or the indices of a palette image.
    """

    what: ClassVar[str] = "a segmentation map"
    metric: ClassVar[str] = "segmentation"
    reconstruction_term: ClassVar[str | None] = "label"
    bytes_per_pixel: ClassVar[int] = 1
    array_files: ClassVar[bool] = False

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
        """Map label ids (H, W) to their colours (3, H, W) float32 in [-1, 1].

        Raises:
            UserError: a wrong shape, a type other than integers, or an unknown id.
        """
        array = self.as_array(raw)
        if not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"a segmentation map has type {array.dtype}: give integer label ids")
        labels = array.astype(np.int64)
        rows = self._rows(labels)
        if (rows < 0).any():
            listed = ", ".join(str(i) for i in self.ids.tolist()[:12]) + (", …" if len(self.ids) > 12 else "")
            raise UserError(
                f"a segmentation map holds the unknown label {int(labels[rows < 0][0])}: known ids are {listed}"
            )
        return self.palette[torch.from_numpy(rows)].permute(2, 0, 1).contiguous()

    def _rows(self, labels: np.ndarray) -> np.ndarray:
        """Rows of the palette, -1 for an unknown label."""
        inside = (labels >= 0) & (labels < len(self._row_of_id))
        return np.where(inside, self._row_of_id[np.where(inside, labels, 0)], -1)

    def logits(self, images: Tensor) -> Tensor:
        """Minus the squared distance to each palette colour, (B, 3, H, W) -> (B, K, H, W); its argmax decodes."""
        palette = self.palette.to(images)
        # |x - c|^2 = |x|^2 - 2 x.c + |c|^2
        cross = torch.einsum("bchw,kc->bkhw", images, palette)
        return 2 * cross - palette.square().sum(dim=1)[:, None, None] - images.square().sum(dim=1, keepdim=True)

    def rows(self, images: Tensor) -> Tensor:
        """Rows of the palette that are nearest, (B, 3, H, W) -> (B, H, W) int64."""
        return self.logits(images).argmax(dim=1)

    def decode(self, images: Tensor) -> np.ndarray:
        """Map (B, 3, H, W) to the ids of the nearest colours, (B, H, W) int64."""
        return self.ids[self.rows(check_images(images)).cpu()].numpy()

    def ensemble(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The label of most estimates (the smallest id of several), and the share that has another."""
        labels = np.unique(members)
        votes = np.stack([(members == label).sum(axis=0) for label in labels])  # (K, H, W)
        share = 1 - votes.max(axis=0) / len(members)
        return labels[votes.argmax(axis=0)].astype(members.dtype), share.astype(np.float32)

    def follow(self, before: np.ndarray | None, raw: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The label of most weight and that weight, (H, W, 2) float32: another one takes its place when it weighs more."""
        label = raw.astype(np.float32)
        if before is None:
            return np.stack([label, np.ones_like(label)], axis=-1)
        held = weight * before[..., 1]
        same = label == before[..., 0]
        stays = same | (held >= 1 - weight)
        return np.stack(
            [np.where(stays, before[..., 0], label), np.where(stays, held, 0) + np.where(same | ~stays, 1 - weight, 0)],
            axis=-1,
        ).astype(np.float32)

    def followed(self, known: np.ndarray) -> np.ndarray:
        """The labels, (H, W) int64."""
        return known[..., 0].astype(np.int64)

    def from_image(self, stored: Stored) -> np.ndarray:
        """Label ids (H, W) int64: grey values, or indices of a palette image."""
        assert stored.image is not None
        if stored.image.mode not in ("L", "P", *DEEP_GREY):
            raise stored.error(
                f"a {self.name} map must be one channel of label ids, this image has mode {stored.image.mode!r}"
            )
        return np.asarray(stored.image).astype(np.int64)

    def drawing_colors(self) -> dict[str, tuple[int, int, int]]:
        """The colour of each class."""
        return {name: tuple(color) for name, color in zip(self.names, self.colors.tolist(), strict=True)}

    def from_drawing(self, pixels: np.ndarray) -> Reading:
        """Label ids of the colours. Others are edges that the brush smooths: they are what the nearest pixel is."""
        from scipy import ndimage  # half a second that only drawings take

        colors, place = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)  # (U, 3): a drawing has few
        nearest = np.full(len(colors), np.iinfo(np.int32).max, dtype=np.int32)
        labels = np.zeros(len(colors), dtype=np.int64)
        for label, color in zip(self.ids.tolist(), self.colors.astype(np.int32), strict=True):
            distance = ((colors.astype(np.int32) - color) ** 2).sum(axis=-1, dtype=np.int32)
            labels, nearest = np.where(distance < nearest, label, labels), np.minimum(nearest, distance)
        drawn = labels[place].reshape(pixels.shape[:2])
        between = (nearest > _SAME_COLOR)[place].reshape(pixels.shape[:2])
        if between.all():
            return Reading(drawn, as_seen=True)
        rows, columns = ndimage.distance_transform_edt(between, return_distances=False, return_indices=True)
        return Reading(drawn[rows, columns], as_seen=True)

    def check(self, reading: Reading) -> list[str]:
        """List what is wrong: the map must be (H, W) integers, all of them known ids."""
        array = reading.values
        if array.ndim != 2 or array.dtype.kind not in "iu":
            return [f"holds {array.dtype} of shape {array.shape}: must be one channel of label ids"]
        rows = self._rows(array.astype(np.int64))
        if (rows >= 0).all():
            return []
        unknown = np.unique(array[rows < 0])
        listed = ", ".join(map(str, unknown[:8])) + (", ..." if unknown.size > 8 else "")
        return [f"unknown labels {listed} on {int((rows < 0).sum())} pixels"]

    def enlarge(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """The nearest pixel: labels can't be averaged."""
        return self.resize(raw, height, width)

    def resize_output(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """The nearest pixel: labels can't be averaged."""
        return self.resize(raw, height, width)

    def picture(self, raw: np.ndarray) -> np.ndarray:
        """The palette's colours; an id outside it is grey."""
        colors = np.full((max(int(raw.max()), int(self.ids.max())) + 1, 3), 128, dtype=np.uint8)
        colors[self.ids.numpy()] = self.colors
        return colors[raw]

    def legend(self, raw: np.ndarray) -> dict[str, tuple[int, int, int]]:
        """The classes of at least a hundredth of the pixels, the largest first: seams between two may decode to a third."""
        counts = np.bincount(self._rows(raw)[self._rows(raw) >= 0], minlength=len(self.names))
        rows = [row for row in np.argsort(-counts, kind="stable") if counts[row] >= raw.size / 100]
        return {self.names[row]: tuple(self.colors[row].tolist()) for row in rows}

    def pixels(self, raw: np.ndarray, facts: Mapping[str, Any] = NOTHING) -> np.ndarray:
        """Label ids as uint8, or uint16 if one is beyond 255."""
        return raw.astype(np.uint8 if raw.max(initial=0) < 256 else np.uint16)

    def indexed_image(self, labels: np.ndarray) -> Image.Image:
        """Label ids (H, W) as an indexed image with the palette; as 16-bit grey where an id is beyond 255."""
        if max(int(labels.max()), int(self.ids.max())) > 255:
            return Image.fromarray(labels.astype(np.uint16))
        image = Image.fromarray(labels.astype(np.uint8)).convert("P")
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[self.ids.numpy()] = self.colors
        image.putpalette(palette.ravel().tolist())
        return image

    def files(self, raw: np.ndarray) -> dict[str, bytes]:
        """Label ids (H, W) as an indexed PNG."""
        return {f"{self.name}.png": png(self.indexed_image(raw))}

    def file_names(self) -> frozenset[str]:
        """The name of the PNG."""
        return frozenset({f"{self.name}.png"})

    def metadata(self, raw: np.ndarray) -> dict[str, Any]:
        """The classes that the map shows."""
        present = set(np.unique(raw).tolist())
        rows = zip(self.ids.tolist(), self.names, self.colors.tolist(), strict=True)
        return {f"{self.name}_classes": [{"id": i, "name": n, "color": c} for i, n, c in rows if i in present]}

    @classmethod
    def dataset_settings(cls, facts: Mapping[str, Any]) -> dict[str, Any]:
        """``segmentation_classes`` of ``dataset.json`` as the codec's classes."""
        classes = facts.get("segmentation_classes")
        return {"classes": [dict(entry) for entry in classes]} if classes else {}

    @classmethod
    def read_facts(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """``segmentation_classes``: a list of {"id", "name", "color"}; missing or empty = None, labels without names."""
        classes = values.get("segmentation_classes")
        if classes is None:
            return {"segmentation_classes": None}, []
        form = f"'segmentation_classes' must be a list of {_CLASS_FORM}"
        if not isinstance(classes, list):
            return {}, [f"{form}, one per label, not {quoted(classes)}"]
        for entry in classes:
            if not _is_class(entry):
                return {}, [f"{form}; one is {quoted(entry)}"]
        reasons = [f"'segmentation_classes' has id {i} twice" for i in _repeated(entry["id"] for entry in classes)]
        for color in _repeated(tuple(entry["color"]) for entry in classes):
            sharing = ", ".join(str(entry["id"]) for entry in classes if tuple(entry["color"]) == color)
            reasons.append(
                f"'segmentation_classes' gives the color {list(color)} to the ids {sharing}: each needs its own"
            )
        return {"segmentation_classes": tuple(classes) or None}, reasons


def _is_class(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or has_surrogate(entry["name"]):
        return False
    color = entry.get("color")
    return (
        _is_whole(entry.get("id"), _MAX_ID)
        and isinstance(color, list)
        and len(color) == 3
        and all(_is_whole(value, 255) for value in color)
    )


def _is_whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _repeated(values: Iterable[Any]) -> list[Any]:
    """Those that appear again, each once, in their order."""
    return [value for value, times in Counter(values).items() if times > 1]
