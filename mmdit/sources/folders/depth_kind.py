"""What a folder of depth files holds: decided once for all of them, and asked where files don't tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError
from mmdit.modalities.depth import DEPTH_SPACE_KEY, DepthCodec
from mmdit.modalities.depth_values import MAX_UNITS, TREND, vertical_trend
from mmdit.modalities.stored import open_stored
from mmdit.names import DEPTH_SPACES
from mmdit.sources.folders.storing import AsItIs, MetricDepth, RelativeDepth
from mmdit.sources.relative_depth import RELATIVE_SCALE

# Files that "auto" looks at, evenly spread.
LOOKED_AT = 16
# Space of --depth_values that are relative.
RELATIVE_SPACES = {"relative": "depth", "near_white": "disparity"}
_ASK = (
    "say what it holds with --depth_values: near_white (larger = nearer, as ControlNet, MiDaS and Depth Anything draw it) or "
    "relative (larger = farther, as Marigold)"
)
_OR_METRIC = f"{_ASK}, or metric (distances)"


@dataclass(frozen=True)
class DepthKind:
    """``space``: that it is linear in; ``metric``: distances; ``scale``: metres per unit of images of whole numbers."""

    space: str
    metric: bool
    scale: float
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """What dataset.json says of it, as of a labeller's."""
        return {"space": self.space, "metric": self.metric}

    def store(self) -> AsItIs:
        """How its files are stored."""
        return MetricDepth(self.scale) if self.metric else RelativeDepth(self.space)


def depth_kind(paths: Sequence[str], depth_values: str, depth_scale: float) -> DepthKind:
    """Tell what depth files hold.

    Args:
        paths: of all.
        depth_values: "metric", "relative" (larger = farther), "near_white" (larger = nearer); "auto": files that name their
            space are relative in it; whole numbers of 16 bits, and floats beyond 1, are distances.
        depth_scale: of distances.

    Raises:
        UserError: "auto", and the files don't tell: 8 bits, floats within [0, 1], 16 bits that are stretched to the whole
            range, or files of different kinds.
    """
    if depth_values in RELATIVE_SPACES:
        return DepthKind(RELATIVE_SPACES[depth_values], False, RELATIVE_SCALE)
    metric = DepthKind("depth", True, depth_scale)
    if depth_values == "metric":
        return metric
    looks = [look for path in paths[:: max(1, len(paths) // LOOKED_AT)] if (look := _look(path)) is not None]
    kinds = {look.kind: look.path for look in reversed(looks)}
    if not looks:
        return metric  # no file can be read: each is named later
    if named := [kind for kind in kinds if kind in DEPTH_SPACES]:
        if len(kinds) > 1:
            one, other = list(kinds.values())[:2]
            raise UserError(f"{one} and {other} hold depth of different kinds: import them as two datasets")
        return DepthKind(named[0], False, RELATIVE_SCALE, f"--depth: read as relative {named[0]}, as the files say")
    if kinds.keys() <= {"picture", "unit"}:
        what = {"picture": "has 8 bits, a picture of depth", "unit": "holds floats within [0, 1]"}
        kind, path = next(iter(kinds.items()))
        raise UserError(f"{path}: {what[kind]}: {_ASK if kind == 'picture' else _OR_METRIC}")
    path = looks[0].path
    if all(look.kind == "stretched" for look in looks):
        raise UserError(f"{path}: its 16 bits are stretched to the whole range, up to {MAX_UNITS}: {_OR_METRIC}")
    path, (near, far) = next((look.path, look.span) for look in looks if look.kind in ("metric", "stretched"))
    unit = f", {depth_scale:g} a unit of whole numbers"
    span = f"{near * depth_scale:.3g} to {far * depth_scale:.3g}" if _is_whole(path) else f"{near:.3g} to {far:.3g}"
    note = f"--depth: read as distances in metres{unit}: {span} in {path}; --depth_values and --depth_scale can say otherwise"
    if np.mean([look.trend for look in looks]) > TREND:
        note += "; they grow towards the bottom, which is usually nearer: if larger is nearer, give --depth_values near_white"
    return DepthKind("depth", True, depth_scale, note)


@dataclass(frozen=True)
class _Look:
    """A file's kind, the smallest and largest of its valid values, and whether they grow towards the bottom."""

    path: str
    kind: str
    span: tuple[float, float]
    trend: float = 0.0


def _look(path: str) -> _Look | None:
    """What a file seems to hold; None = it can't be read."""
    try:
        stored = open_stored(Path(path))
        if (space := stored.text.get(DEPTH_SPACE_KEY)) in DEPTH_SPACES:
            return _Look(path, str(space), (0.0, 1.0))
        reading = DepthCodec("depth").interpret(stored, {"depth_values": "metric"})
    except UserError:
        return None
    values = reading.values
    usable = np.isfinite(values) & (values > 0)
    valid, trend = values[usable], vertical_trend(np.where(usable, values, np.nan))
    span = (float(valid.min()), float(valid.max())) if valid.size else (0.0, 0.0)
    dtype = values.dtype if stored.array is None else stored.array.dtype
    if dtype.itemsize == 1:
        return _Look(path, "picture", span)
    if dtype.kind == "f":
        return _Look(path, "unit" if span[1] <= 1 else "metric", span, trend)
    return _Look(path, "stretched" if span[1] >= MAX_UNITS else "metric", span, trend)


def _is_whole(path: str) -> bool:
    stored = open_stored(Path(path))
    return stored.image is not None and np.asarray(stored.image).dtype.kind != "f"
