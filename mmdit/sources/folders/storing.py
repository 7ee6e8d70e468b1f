"""How a file of a user's folder becomes one of a dataset: read, judged, and copied as it is wherever the loader reads it so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError
from mmdit.modalities.codec import NOTHING, Codec
from mmdit.modalities.depth import DepthCodec
from mmdit.modalities.depth_values import FAR
from mmdit.modalities.files import npy, png
from mmdit.modalities.reading import Reading
from mmdit.modalities.stored import open_stored
from mmdit.sources.relative_depth import RELATIVE_SCALE, from_disparity, from_relative_depth


class AsItIs:
    """Copies the file: a JPEG stays a JPEG, 16 bits stay 16 bits.

    Args:
        codec: of the modality.
        options: how the dataset's loader will read it.
        hint: what the user can do about values that are refused.
    """

    def __init__(self, codec: Codec, options: Mapping[str, Any] = NOTHING, hint: str = "") -> None:
        self.codec, self.options, self.hint = codec, options, hint

    def read(self, path: str) -> Reading:
        """Read a file as the loader will. Raises UserError for what ``mmdit data check`` would refuse."""
        reading = self.mend(self.codec.read(path, self.options))
        for reason in self.codec.check(reading):
            raise UserError(f"{path}: {reason}{self.hint}")
        return reading

    def mend(self, reading: Reading) -> Reading:
        """Mark what the format has another mark for."""
        return reading

    def suffixes(self, path: str) -> tuple[str, ...]:
        """Those that the dataset's file may have."""
        return (Path(path).suffix.lower(),)

    def content(self, path: str, reading: Reading) -> tuple[str, bytes]:
        """Suffix and bytes of the dataset's file."""
        return self.suffixes(path)[0], Path(path).read_bytes()


class MetricDepth(AsItIs):
    """Distances. Images of whole numbers are copied, floats become ``.npy``; there NaN, infinity and ``FAR`` become 0.

    Args:
        depth_scale: metres per unit of images of whole numbers.
    """

    def __init__(self, depth_scale: float) -> None:
        super().__init__(DepthCodec(), {"depth_scale": depth_scale})

    def mend(self, reading: Reading) -> Reading:
        values = reading.values
        invalid = ~np.isfinite(values) | (values >= FAR)
        return reading.replace(values=np.where(invalid, np.float32(0), values)) if invalid.any() else reading

    def suffixes(self, path: str) -> tuple[str, ...]:
        return (*super().suffixes(path), ".npy")

    def content(self, path: str, reading: Reading) -> tuple[str, bytes]:
        stored = open_stored(path)
        if stored.image is not None and np.asarray(stored.image).dtype.kind != "f":
            return super().content(path, reading)
        return ".npy", npy(reading.values.astype(np.float32))


class RelativeDepth(AsItIs):
    """Depth up to scale and shift, as positive numbers that keep its space (``mmdit.sources.relative_depth``).

    Args:
        space: "disparity" where larger is nearer, "depth" where larger is farther.
    """

    def __init__(self, space: str) -> None:
        super().__init__(DepthCodec(space), {"depth_values": "relative"})
        self.convert = from_disparity if space == "disparity" else from_relative_depth

    def suffixes(self, path: str) -> tuple[str, ...]:
        return (".png",)

    def content(self, path: str, reading: Reading) -> tuple[str, bytes]:
        depth = self.convert(reading.values.astype(np.float64))
        return ".png", png(self.codec.pixels(depth, {"depth_scale": RELATIVE_SCALE}))
