"""Depth along the optical axis, as an affine-invariant map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.codec import NOTHING, Codec, Raw, check_images, non_finite
from mmdit.modalities.depth_values import DEPTH_VALUES, FAR, MAX_UNITS, Guess, guess_values
from mmdit.modalities.exr import exr_bytes
from mmdit.modalities.files import npy, png
from mmdit.modalities.reading import Reading
from mmdit.modalities.stored import Stored
from mmdit.names import DATASET, DEPTH_SPACES, METADATA
from mmdit.storage.json_object import read_object
from mmdit.storage.json_text import quoted

DEPTH_SCALE = 0.001
# Written into our 16-bit depth.png, so that a relative map is not taken for metres wherever the file is moved.
DEPTH_SPACE_KEY = "mmdit_depth_space"
_ALIGNMENTS = 10
_NOT_8_BITS = (
    "has 8 bits, a picture of depth and no distances: must be one channel, 16-bit PNG (metres = value x depth_scale) "
    "or float .npy (metres)"
)
# Rising lightness, so that order survives greyscale and colour-blind eyes: far is dark blue, near is pale yellow.
_COLORS = np.array(
    [
        (12, 10, 48),
        (58, 20, 110),
        (112, 30, 122),
        (166, 44, 106),
        (214, 72, 78),
        (244, 118, 52),
        (252, 178, 70),
        (252, 244, 176),
    ]
)


class DepthCodec(Codec, name="depth"):
    """Depth as an affine-invariant map: each image's own quantiles become -1 and 1, and values beyond are clipped.

    Args:
        space: "disparity" (1 / metres; near = 1) or "depth" (metres; far = 1).
        quantiles: (low, high) of an image's valid pixels in that space, from 0 to 1.

    ``encode`` reads z-depth in metres, where 0, negative and non-finite values are invalid; they are filled with the
    far end. With ``relative=True`` it reads a map that is already in the codec's space and known up to scale and shift,
    like the output of ``decode``: there 0 is a value, and only non-finite pixels are invalid.
    ``decode`` gives relative values in [0, 1] in the codec's space.

    Reading takes two options. ``depth_scale``: the file is a dataset's, metres per unit of its image; it is metric.
    ``depth_values``: what any other holds, one of ``DEPTH_VALUES``: "metric" (distances in any unit, 0 = invalid);
    "relative" (the codec's own space, any scale and shift); "near_white" (relative, near = large); "auto": our own files
    are relative, datasets' are metric, and so are images of 16 bits and whole numbers; 8 bits, floats that all lie in
    [0, 1], and 16 bits from 0 to 65535, are relative: of files and pictures, near is white where the lower part is brighter.
    What "auto" guesses about a file is said in the reading's ``note``; distances that rise to the bottom are asked about.
    """

    what: ClassVar[str] = "a depth map"
    metric: ClassVar[str] = "depth"
    read_options: ClassVar[tuple[str, ...]] = ("depth_values",)

    def __init__(self, space: str = "disparity", quantiles: Sequence[float] = (0.02, 0.98)) -> None:
        if space not in DEPTH_SPACES:
            raise unknown_name("depth space", space, DEPTH_SPACES)
        if len(quantiles) != 2 or not 0 <= quantiles[0] < quantiles[1] <= 1:
            raise UserError(f"depth quantiles are {list(quantiles)}: give two rising numbers from 0 to 1")
        self.space = space
        self.quantiles = (float(quantiles[0]), float(quantiles[1]))

    def encode(self, raw: Raw, relative: bool = False) -> Tensor:
        """Map metres (H, W), or with ``relative`` a map in the codec's space, to (3, H, W) float32 in [-1, 1].

        Raises:
            UserError: a wrong shape or type, or a map without a valid pixel.
        """
        array = self.as_array(raw)
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
        scaled = np.zeros_like(values)  # a constant map has no scale: put it in the middle
        if high - low > 1e-7 * max(abs(low), abs(high)):
            scaled = 2 * (values - low) / (high - low) - 1
        scaled = np.where(valid, scaled, -1.0 if inverted else 1.0)
        return torch.from_numpy(scaled.clip(-1, 1).astype(np.float32)).expand(3, -1, -1).contiguous()

    def encode_reading(self, reading: Reading) -> Tensor:
        """Encode what ``read`` returned, metric or relative."""
        return self.encode(reading.values, relative=reading.relative)

    def decode(self, images: Tensor) -> np.ndarray:
        """Map (B, 3, H, W) to relative depth (B, H, W) float32 in [0, 1], in the codec's space."""
        return ((check_images(images).mean(dim=1).clamp(-1, 1) + 1) / 2).cpu().numpy()

    def ensemble(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative maps, aligned to each other by scale and shift: their median from 0 to 1, and the median distance to it.

        Marigold's (section 3.3), with its alignment solved in closed form: each map is fitted to the median of all, again until
        it stays (the Procrustes iteration), which starts from maps that all span [0, 1].
        """
        maps = members.astype(np.float64).reshape(len(members), -1)
        maps = _unit(maps)
        for _ in range(_ALIGNMENTS):
            middle = np.median(maps, axis=0)
            centred = maps - maps.mean(axis=1, keepdims=True)
            scale = (centred @ (middle - middle.mean())) / np.maximum((centred**2).sum(axis=1), 1e-12)
            maps = _unit_like(scale[:, None] * centred + middle.mean())
        middle = np.median(maps, axis=0)
        extent = max(np.ptp(middle), 1e-6)
        spread = np.median(np.abs(maps - middle), axis=0) / extent
        shape = members.shape[1:]
        return ((middle - middle.min()) / extent).reshape(shape).astype(np.float32), spread.reshape(shape).astype(
            np.float32
        )

    # ---- reading

    def interpret(self, stored: Stored, options: Mapping[str, Any] = NOTHING) -> Reading:
        """Read metres or relative depth, as the options or the file say (see the class).

        Raises:
            UserError: an unknown option, another codec's space, or a dataset's file that is not metric.
        """
        reading = super().interpret(stored, options)
        if "depth_scale" in options:
            return self._of_dataset(stored, reading, float(options["depth_scale"]))
        asked = options.get("depth_values", "auto")
        if asked not in DEPTH_VALUES:
            raise unknown_name("depth_values", asked, DEPTH_VALUES)
        known, space = self._known(stored) if asked == "auto" else (Guess(asked), None)
        guess = known or self._guess(stored, reading.values)
        if guess.kind == "relative":
            space = space or self._marked_space(stored)
            if space is not None and space != self.space:
                raise stored.error(
                    f"holds relative {space}, this model takes relative {self.space}: give depth in metres, or "
                    "depth_values near_white or relative of a file without that mark"
                )
        values = reading.values
        if (guess.kind, self.space) in (("near_white", "depth"), ("far_white", "disparity")):
            values = -values.astype(np.float64)
        note = None if known else self._note(stored, guess)
        if guess.kind == "metric" and values.dtype.kind == "f" and (far := values >= self._far(stored)).any():
            values = np.where(far, 0, values)
            note = f"{note}; {int(far.sum())} of {far.size} pixels are infinitely far" if note else None
        return reading.replace(values=values, relative=guess.kind != "metric", note=note)

    def from_image(self, stored: Stored) -> np.ndarray:
        """Pixels of a grey image of 8, 16 or 32 bits, (H, W), in the file's units; a grey one may be stored as RGB."""
        return self.pixels_of(stored, 16)

    def fill_masked(self, array: np.ma.MaskedArray) -> np.ndarray:
        """NaN, which is invalid in metres and in relative depth; 8 bits become floats in [0, 1], relative too."""
        values = np.ma.filled(array.astype(np.float64 if array.dtype.kind in "iu" else array.dtype), np.nan)
        return values / 255 if array.dtype == np.uint8 else values

    def from_array(self, stored: Stored) -> np.ndarray:
        """Numbers of an array, (H, W), in the file's units. Raises UserError for booleans too."""
        array = stored.array
        if array is not None and array.dtype == bool:
            raise stored.error(f"holds {array.dtype} {array.shape}; give numbers of shape {self.shape_words()}")
        return super().from_array(stored)

    def drawing_colors(self) -> dict[str, tuple[int, int, int]]:
        """Greys, near = white."""
        names = ("farthest", "far", "middle", "near", "nearest")
        greys = [round(255 * step / (len(names) - 1)) for step in range(len(names))]
        return {name: (grey, grey, grey) for name, grey in zip(names, greys, strict=True)}

    def from_drawing(self, pixels: np.ndarray) -> Reading:
        """Greys as relative depth, near = white."""
        grey = pixels.astype(np.float64).mean(axis=-1)
        return Reading(-grey if self.space == "depth" else grey, relative=True, as_seen=True)

    def _of_dataset(self, stored: Stored, reading: Reading, scale: float) -> Reading:
        """Metres, float32: an image of whole numbers is scaled, floats are as they are."""
        if self._marked_space(stored) is not None:
            raise stored.error("holds relative depth (it is a result of this program): give depth in metres")
        values = reading.values
        if values.dtype in (np.uint8, np.bool_) and stored.image is not None:
            raise stored.error(
                _NOT_8_BITS if stored.image.mode == "L" else f"has mode {stored.image.mode!r}, {_NOT_8_BITS}"
            )
        metres = values.astype(np.float32)
        if stored.image is not None and values.dtype.kind != "f":
            metres = metres * np.float32(scale)
        return reading.replace(values=metres)

    def _known(self, stored: Stored) -> tuple[Guess | None, str | None]:
        """What a map is known to hold, with the space of a relative one if it is known; None = it is to be guessed."""
        if (space := self._marked_space(stored)) is not None:
            return Guess("relative"), space
        path = stored.path
        if path is not None:
            folder = path.resolve().parent
            if path.name in self.file_names() and (folder / METADATA).is_file():
                return Guess("relative"), self._space_beside(folder / METADATA)
            if folder.name == self.name and (folder.parents[1] / DATASET).is_file():
                return Guess("metric"), None
        elif stored.array is not None:  # the pipeline's documentation says which array is which
            array = stored.array
            finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array[:0]
            within = finite.size > 0 and finite.min() >= 0 and finite.max() <= 1
            return Guess("relative" if within or array.dtype == np.uint8 else "metric"), None
        return None, None

    def _guess(self, stored: Stored, values: np.ndarray) -> Guess:
        """Guess what a file or a picture holds. Raises UserError where its numbers and its picture disagree."""
        guess = guess_values(values, values.dtype if stored.array is None else stored.array.dtype)
        if guess.conflict:
            raise stored.error(
                "holds numbers like distances, but they grow towards the bottom, which is usually nearer: say what it holds, "
                f"{self._option(stored)} near_white (larger = nearer) or metric (larger = farther)"
            )
        return guess

    def _note(self, stored: Stored, guess: Guess) -> str:
        """Say what was guessed about a file or a picture."""
        read_as = {
            "relative": f"relative {self.space}",
            "near_white": "relative disparity (near_white)",
            "far_white": "relative depth (far is white)",
            "metric": "distances (larger = farther, 0 = invalid)",
        }[guess.kind]
        prefix = f"{stored.where}: " if stored.where else ""
        reason = f", {guess.reason}" if guess.reason else ""
        return f"{prefix}read as {read_as}{reason}; {self._option(stored)} can say otherwise"

    def _option(self, stored: Stored) -> str:
        return "--depth_values" if stored.where else "depth_values"

    def _far(self, stored: Stored) -> float:
        """The least distance that means nothing was hit; half floats end before the usual one."""
        is_half = stored.array is not None and stored.array.dtype == np.float16
        return float(np.finfo(np.float16).max) if is_half else FAR

    def _marked_space(self, stored: Stored) -> str | None:
        return stored.text.get(DEPTH_SPACE_KEY)

    def _space_beside(self, metadata: Path) -> str | None:
        try:
            found = read_object(metadata, constants=True).get(f"{self.name}_space")
        except UserError:
            return None
        return found if isinstance(found, str) else None

    # ---- judging

    def check(self, reading: Reading) -> list[str]:
        """List what is wrong with metres (0 = invalid) or relative depth; empty = they can be trained on."""
        array = reading.values
        if array.dtype.kind not in "fiu":
            return [f"holds {array.dtype} of shape {array.shape}: must be one channel, 16-bit PNG or float .npy"]
        if reasons := self.shape_reasons(array) or non_finite(array):
            return reasons
        if reading.relative:
            return []
        if array.min() < 0:
            return [f"{int((array < 0).sum())} pixels are negative, down to {array.min()}: 0 marks an invalid pixel"]
        return [] if array.max() > 0 else ["no valid pixel: all are 0"]

    def check_given(self, reading: Reading) -> list[str]:
        """List what is wrong with a given file; negative distances are refused too."""
        array = reading.values
        metric = array.dtype.kind in "fi" and not (reading.relative or self.shape_reasons(array))
        if metric and (negative := int((array < 0).sum())):
            return [
                f"{negative} of {array.size} pixels are negative: give distances, 0 = invalid, or --depth_values relative"
            ]
        return super().check_given(reading)

    def has_values(self, raw: np.ndarray) -> bool:
        """Whether any pixel is finite and positive."""
        return bool((np.isfinite(raw) & (raw > 0)).any())

    def as_given(self, raw: np.ndarray) -> np.ndarray | Reading:
        """Metres (H, W) as a reading, so that the pipeline can't take them for relative depth."""
        return Reading(raw, as_seen=True)

    # ---- writing

    def picture(
        self, raw: np.ndarray, *, color_map: str | None = None, val_min: float = 0.0, val_max: float = 1.0
    ) -> np.ndarray:
        """Colour relative depth, (H, W, 3) uint8.

        Args:
            raw: (H, W) relative depth.
            color_map: None = our own, in which near is bright in both spaces; "Spectral" (Marigold's: near is red) or "binary",
                or any of matplotlib's, from near to far.
            val_min, val_max: values that get the first and the last colour.

        Raises:
            UserError: no range, or an unknown map.
        """
        if not val_min < val_max:
            raise UserError(f"val_min is {val_min:g} and val_max {val_max:g}: give two rising numbers")
        values = np.clip(np.nan_to_num((raw - val_min) / (val_max - val_min)), 0, 1)
        near = values if self.space == "disparity" else 1 - values
        if color_map is not None:
            return _mapped(1 - near, color_map)
        position = near * (len(_COLORS) - 1)
        knots = np.arange(len(_COLORS))
        channels = [np.interp(position, knots, _COLORS[:, c]) for c in range(3)]
        return np.stack(channels, axis=-1).round().astype(np.uint8)

    def truth_picture(self, raw: np.ndarray) -> np.ndarray:
        """Draw metres as their relative depth, (H, W, 3) uint8."""
        return self.picture(self.decode(self.encode(raw)[None])[0])

    def pixels(self, raw: np.ndarray, facts: Mapping[str, Any] = NOTHING) -> np.ndarray:
        """Metres as 16-bit units of ``depth_scale``; invalid where not positive, not finite, or beyond 65535 units."""
        scale = float(facts.get("depth_scale", DEPTH_SCALE))
        units = np.round(np.nan_to_num(raw.astype(np.float64), nan=0, posinf=0, neginf=0) / scale)
        return np.where((units < 1) | (units > MAX_UNITS), 0, units).astype(np.uint16)

    def sixteen_bits(self, raw: np.ndarray) -> np.ndarray:
        """Relative depth (H, W) in [0, 1] as uint16, 0 to 65535."""
        return (np.clip(np.nan_to_num(raw), 0, 1) * MAX_UNITS).round().astype(np.uint16)

    def exr(self, raw: np.ndarray) -> bytes:
        """Relative depth (H, W) as an OpenEXR file, float32, that names the space. Raises UserError without the library."""
        return exr_bytes(raw.astype(np.float32), {DEPTH_SPACE_KEY: self.space})

    def files(self, raw: np.ndarray) -> dict[str, bytes]:
        """Relative depth (H, W) as float32 ``.npy``, as a 16-bit PNG that names the space, and as colours."""
        return {
            f"{self.name}.npy": npy(raw.astype(np.float32)),
            f"{self.name}.png": png(self.sixteen_bits(raw.astype(np.float32)), {DEPTH_SPACE_KEY: self.space}),
            f"{self.name}_vis.png": png(self.picture(raw)),
        }

    def file_names(self) -> frozenset[str]:
        """The names of these three files."""
        return frozenset({f"{self.name}.npy", f"{self.name}.png", f"{self.name}_vis.png"})

    def metadata(self, raw: np.ndarray) -> dict[str, Any]:
        """The space of the relative depth."""
        return {f"{self.name}_space": self.space}

    @classmethod
    def option_settings(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """``depth_space`` and ``depth_quantiles`` of ``mmdit data encode``."""
        names = {"space": "depth_space", "quantiles": "depth_quantiles"}
        return {setting: options[option] for setting, option in names.items() if option in options}

    @classmethod
    def read_facts(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """``depth_scale``: metres per unit of a 16-bit image; missing = millimetres."""
        scale = values.get("depth_scale")
        if scale is None:
            return {"depth_scale": DEPTH_SCALE}, []
        try:
            if not isinstance(scale, bool) and isinstance(scale, (int, float)) and 0 < float(scale) < math.inf:
                return {"depth_scale": float(scale)}, []
        except OverflowError:
            pass
        return {}, [f"'depth_scale' is {quoted(scale)}: give metres per unit, a positive number"]


def _unit(maps: np.ndarray) -> np.ndarray:
    """Each of (E, P) from 0 to 1; a constant one is 0.5."""
    low, high = maps.min(axis=1, keepdims=True), maps.max(axis=1, keepdims=True)
    return np.where(high > low, (maps - low) / np.maximum(high - low, 1e-12), 0.5)


def _unit_like(maps: np.ndarray) -> np.ndarray:
    """All of (E, P) by one scale and shift, so that their median is from 0 to 1: fits alone would shrink them."""
    middle = np.median(maps, axis=0)
    return (maps - middle.min()) / max(np.ptp(middle), 1e-12)


def _mapped(far: np.ndarray, color_map: str) -> np.ndarray:
    """Colours (H, W, 3) uint8 of values in [0, 1], through diffusers, which has two maps of its own and matplotlib's."""
    from diffusers.pipelines.marigold import MarigoldImageProcessor

    try:
        colors = MarigoldImageProcessor.colormap(far.astype(np.float32), cmap=color_map, bytes=True)
    except (ValueError, KeyError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"color_map is {color_map!r}: give Spectral, binary, or one of matplotlib's ({reason})"
        ) from None
    return np.asarray(colors)
