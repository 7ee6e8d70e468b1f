"""The base of all codecs: a modality's raw array <-> three channels in [-1, 1], what the VAE reads and writes.

Shapes: H, W pixels; B images. A raw array is (H, W), or (H, W, channels). ``encode`` takes one and returns (3, H, W) float32;
``decode`` takes (B, 3, H, W) and returns a numpy batch of raw arrays.

The base class is a plain map of numbers in ``value_range``. A new kind of image is a subclass with its own name,
``class EdgesCodec(Codec, name="edges")``, that changes what differs, and one entry in ``MODALITIES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError
from mmdit.modalities.exr import exr_bytes
from mmdit.modalities.files import npy, png
from mmdit.modalities.layouts import shape_words, split_values
from mmdit.modalities.orientation import turn_pixels
from mmdit.modalities.reading import Reading
from mmdit.modalities.resizing import antialiased, between_pixels, nearest_pixel
from mmdit.modalities.stored import Stored, open_stored, to_numpy

Raw = np.ndarray | Tensor
Output = list[Image.Image] | np.ndarray | Tensor
# Pillow's names for one channel of more than 8 bits.
DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_COLOURED = ("RGB", "RGBA", "LA", "P")
_GREY_TOLERANCE = 2  # between channels of a grey JPEG
NOTHING: Mapping[str, Any] = {}

CODECS: dict[str, type[Codec]] = {}


class Codec:
    """Everything about the raw values of one kind of image.

    Attributes:
        name: of the modality that the codec was built for; names files, metadata and messages.
        what: how messages call one raw array, after "a" or "an".
        channels: of raw arrays; None = (H, W).
        is_image: whether raw arrays are pictures, (H, W, 3) uint8.
        value_range: of a plain map.
        metric: name in ``mmdit.metrics.maps.METRICS``.
        reconstruction_term: what the autoencoder's objective adds for this kind: "cosine", "label", or None.
        bytes_per_pixel: size of a result's files, to check for free space.
        array_files: whether ``.npy``, ``.npz`` and EXR files are read.
        read_options: names of the options of ``read`` that say what a file holds.
    """

    name: str = "map"
    what: ClassVar[str] = "a map"
    channels: ClassVar[int | None] = None
    is_image: ClassVar[bool] = False
    value_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    metric: ClassVar[str] = "absolute_error"
    reconstruction_term: ClassVar[str | None] = None
    bytes_per_pixel: ClassVar[int] = 9
    array_files: ClassVar[bool] = True
    read_options: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, name: str | None = None, **keywords: Any) -> None:
        """Enter a subclass with a name into ``CODECS``."""
        super().__init_subclass__(**keywords)
        if name is None:
            return
        known = CODECS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"two codecs are called {name!r}: {known.__module__} has one already")
        cls.name = name
        CODECS[name] = cls

    # ---- the network's side

    def encode(self, raw: Raw) -> Tensor:
        """Map raw values to (3, H, W) float32 in [-1, 1]; UserError for a wrong shape, type or range."""
        array = self.as_array(raw)
        low, high = self.value_range
        if reasons := self._range_reasons(array):
            raise UserError(f"{self.what}: {reasons[0]}")
        values = ((array.astype(np.float64) - low) / (high - low) * 2 - 1).astype(np.float32)
        if self.channels is None:
            return torch.from_numpy(values).expand(3, -1, -1).contiguous()
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def decode(self, images: Tensor) -> np.ndarray:
        """Map (B, 3, H, W), clipped to [-1, 1] where that matters, to raw values (B, H, W[, channels])."""
        low, high = self.value_range
        values = (check_images(images).clamp(-1, 1) + 1) / 2 * (high - low) + low
        values = values.mean(dim=1) if self.channels is None else values.permute(0, 2, 3, 1)
        return values.cpu().numpy()

    def flip(self, images: Tensor) -> Tensor:
        """Mirror encoded images (..., 3, H, W) left to right, signs included."""
        return images.flip(-1)

    def encode_reading(self, reading: Reading) -> Tensor:
        """Encode what ``read`` returned."""
        return self.encode(reading.values)

    def ensemble(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Combine estimates of one sample, raw arrays (E, H, W[, channels]): here the median.

        Returns:
            A raw array, and (H, W) float32, how far apart they are: here the median distance to it, the largest of channels.
        """
        middle = np.median(members, axis=0).astype(members.dtype)
        spread = np.median(np.abs(members - middle), axis=0).reshape(*middle.shape[:2], -1).max(axis=-1)
        return middle, spread.astype(np.float32)

    def follow(self, before: np.ndarray | None, raw: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """What is known of a video after one more frame: here the weighted mean of what was and what is, float32.

        Args:
            before: what this returned for the frame before; None = ``raw`` is the first.
            raw: raw array of the frame, of the same size.
            weight: (H, W) float32 of what was, 0 to below 1.
        """
        now = raw.astype(np.float32)
        if before is None:
            return now
        weight = weight.reshape(*weight.shape, *[1] * (now.ndim - 2))
        return weight * before + (1 - weight) * now

    def followed(self, known: np.ndarray) -> np.ndarray:
        """The raw array that ``follow`` found."""
        return known

    # ---- reading

    def read(self, source: Any, options: Mapping[str, Any] = NOTHING) -> Reading:
        """Read a file, a PIL image, or one array or tensor.

        Args:
            source: a path, or the value itself; a single array may have the layouts of ``split``.
            options: how to read it; each codec takes what it knows. Of a dataset they are its facts (``dataset.json``).

        Raises:
            UserError: an unreadable file, or one of another kind; it names the file.
        """
        return self.interpret(open_stored(source, self.channels), options)

    def interpret(self, stored: Stored, options: Mapping[str, Any] = NOTHING) -> Reading:
        """Give stored values their meaning."""
        if isinstance(stored.array, np.ma.MaskedArray):
            stored = replace(stored, array=self.fill_masked(stored.array))
        if stored.image is None:
            assert stored.array is not None
            if stored.path is not None and not self.array_files:
                raise stored.error(f"{stored.path.suffix} files are not read for {self.name}; give an image")
            values = self.from_array(stored)
            return Reading(values, as_seen=stored.path is None)
        try:
            values = self.from_image(stored)
        except (ValueError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise stored.error(f"an image of mode {stored.image.mode!r} is not read for {self.name}: {error}") from None
        return Reading(self.turn(values, stored.orientation), orientation=stored.orientation)

    def from_image(self, stored: Stored) -> np.ndarray:
        """Raw values of an image: here 8 or 16 bits over ``value_range``, or floats as they are."""
        pixels = self.pixels_of(stored, 16 if self.channels is None else 8)
        if pixels.dtype.kind == "f":
            return pixels.astype(np.float32)
        low, high = self.value_range
        top = 255 if pixels.dtype == np.uint8 else 65535
        return (pixels.astype(np.float32) / np.float32(top)) * np.float32(high - low) + np.float32(low)

    def fill_masked(self, array: np.ma.MaskedArray) -> np.ndarray:
        """The array with what is masked marked as invalid; here there is no such mark. Raises UserError."""
        if np.ma.is_masked(array):
            raise UserError(f"{self.what} has masked pixels, which it can't mark: give array.filled(...)")
        return array.data

    def from_array(self, stored: Stored) -> np.ndarray:
        """Raw values of an array: here numbers of the right shape, of a file as float32."""
        array = stored.array
        assert array is not None
        if self.channels is None and array.ndim == 3 and array.shape[-1] == 1:
            array = array[..., 0]
        shape = self.shape_words()
        fits = array.ndim == self.ndim and (self.channels is None or array.shape[-1] == self.channels)
        if not fits or array.dtype.kind not in "fiub" or array.size == 0:
            raise stored.error(f"holds {array.dtype} {array.shape}; give numbers of shape {shape}")
        if stored.path is None:
            return array
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which ``check`` lists
            return array.astype(np.float32)

    def pixels_of(self, stored: Stored, bits: int) -> np.ndarray:
        """Pixels of an image with this codec's channels, and for maps up to ``bits``; UserError for another mode.

        A map may be stored in three equal channels, as Blender and image editors do.
        """
        image = stored.image
        assert image is not None
        if self.channels is None:
            if image.mode in _COLOURED and (grey := _grey(image)) is not None:
                return grey
            if image.mode not in ("L", "F", *(DEEP_GREY if bits > 8 else ())):
                raise stored.error(
                    f"a {self.name} map has one channel of 8 or 16 bits, this image has mode {image.mode!r}"
                    + (" and is not grey" if image.mode in _COLOURED else "")
                )
            return np.asarray(image)
        if image.mode not in ("RGB", "RGBA"):
            raise stored.error(f"a {self.name} map has three 8-bit channels, this image has mode {image.mode!r}")
        return np.asarray(image.convert("RGB"))

    def split(self, value: Any) -> list[Any]:
        """One value or a batch -> the single values, see ``split_values``."""
        return split_values(value, self.channels)

    # ---- drawing

    def drawing_colors(self) -> dict[str, tuple[int, int, int]]:
        """Name -> (r, g, b) of 0..255 to draw raw values with, the empty sheet's first: here greys over ``value_range``."""
        low, high = self.value_range
        steps = 5
        greys = [round(255 * step / (steps - 1)) for step in range(steps)]
        return {f"{low + (high - low) * grey / 255:.3g}": (grey, grey, grey) for grey in greys}

    def from_drawing(self, pixels: np.ndarray) -> Reading:
        """Read a drawing of these colours, (H, W, 3) uint8; colours between them are values between, where there are any."""
        low, high = self.value_range
        values = pixels.astype(np.float32) / 255 * (high - low) + low
        return Reading(values.mean(axis=-1) if self.channels is None else values, as_seen=True)

    # ---- judging

    def check(self, reading: Reading) -> list[str]:
        """List what is wrong with raw values, as the loader judges them; empty = they can be trained on."""
        array = reading.values
        if reasons := self.shape_reasons(array):
            return reasons
        return non_finite(array) or self._range_reasons(array)

    def check_given(self, reading: Reading) -> list[str]:
        """List what is wrong with a file that a user gives as a condition: less strict where ``encode`` mends it."""
        array = reading.values
        if reasons := self.shape_reasons(array):
            return reasons
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            pixels = ~np.isfinite(array).reshape(*array.shape[:2], -1).all(axis=-1)
            return [
                f"{int(pixels.sum())} of {pixels.size} pixels are NaN or infinite: fill them, or mark them invalid with 0"
            ]
        try:
            self.encode_reading(reading)
        except UserError as error:
            return [str(error)]
        return self.misread(array)

    def misread(self, raw: np.ndarray) -> list[str]:
        """List why a raw array that a user gives, of the right shape, is likely to mean something else; here nothing."""
        return []

    def shape_reasons(self, array: np.ndarray) -> list[str]:
        """List what is wrong with an array's shape."""
        channels = array.shape[-1] if array.ndim == 3 else None
        if array.ndim != self.ndim or channels != self.channels or 0 in array.shape:
            return [f"has shape {array.shape}: must be {self.shape_words()}"]
        return []

    def _range_reasons(self, array: np.ndarray) -> list[str]:
        low, high = self.value_range
        if array.dtype.kind not in "fiub":
            return [f"has type {array.dtype}: give numbers"]
        if not (np.isfinite(array).all() and array.min() >= low and array.max() <= high):
            return [f"spans [{array.min()}, {array.max()}]: give values in [{low:g}, {high:g}]"]
        return []

    def has_values(self, raw: np.ndarray) -> bool:
        """Whether any pixel of a checked raw array can be given to the model."""
        return True

    # ---- geometry

    def resize(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Resize an input: here by the nearest pixel, because the mean across an edge belongs to neither side."""
        return nearest_pixel(raw, height, width)

    def enlarge(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Enlarge what a network of low resolution says."""
        return between_pixels(raw, height, width)

    def resize_output(self, raw: np.ndarray, height: int, width: int) -> np.ndarray:
        """Resize an output for people."""
        return antialiased(raw, height, width)

    def turn(self, raw: np.ndarray, orientation: int) -> np.ndarray:
        """Turn a stored array as EXIF's tag says, directions included."""
        return turn_pixels(raw, orientation) if orientation != 1 else raw

    # ---- writing

    def as_given(self, raw: np.ndarray) -> np.ndarray | Reading:
        """Checked ground truth as a condition that the pipeline can't take for anything else."""
        return raw

    def from_output(self, values: Any) -> np.ndarray:
        """Invert ``output`` for "np": back to raw arrays."""
        return np.asarray(values)

    def output(self, raw: np.ndarray, output_type: str, device: torch.device | str = "cpu") -> Output:
        """A raw batch as the caller of the pipeline wants it: "pil", "np" or "pt"; maps have one layout in all three."""
        return torch.from_numpy(raw).to(device) if output_type == "pt" else raw

    def picture(self, raw: np.ndarray) -> np.ndarray:
        """Draw raw values for people, (H, W, 3) uint8: here grey."""
        low, high = self.value_range
        grey = (((np.nan_to_num(raw) - low) / (high - low)).clip(0, 1) * 255).round().astype(np.uint8)
        return grey[..., None].repeat(3, axis=-1) if self.channels is None else grey

    def truth_picture(self, raw: np.ndarray) -> np.ndarray:
        """Draw ground truth as a perfect result would look."""
        return self.picture(raw)

    def legend(self, raw: np.ndarray) -> dict[str, tuple[int, int, int]]:
        """What the colours of ``picture`` mean, name -> (r, g, b), where they have names: those of any size in it."""
        return {}

    def pixels(self, raw: np.ndarray, facts: Mapping[str, Any] = NOTHING) -> np.ndarray:
        """Raw values as the pixels of a dataset's PNG, which ``from_image`` inverts."""
        low, high = self.value_range
        top, dtype = (65535, np.uint16) if self.channels is None else (255, np.uint8)
        return (((raw.astype(np.float64) - low) / (high - low)).clip(0, 1) * top).round().astype(dtype)

    def files(self, raw: np.ndarray) -> dict[str, bytes]:
        """The files of one result, by name."""
        return {f"{self.name}.npy": npy(raw.astype(np.float32)), f"{self.name}.png": png(self.pixels(raw))}

    def file_names(self) -> frozenset[str]:
        """Names of all files that ``files`` may write."""
        return frozenset({f"{self.name}.npy", f"{self.name}.png"})

    @property
    def exr_name(self) -> str | None:
        """Name of the OpenEXR file that ``exr`` makes; None = these raw values are no numbers that it holds."""
        return f"{self.name}.exr" if self.array_files and self.channels in (None, 3) else None

    def exr(self, raw: np.ndarray) -> bytes:
        """Raw values as an OpenEXR file, float32. Raises UserError without the library."""
        return exr_bytes(raw.astype(np.float32), {})

    def exr_files(self, raw: np.ndarray) -> dict[str, bytes]:
        """The OpenEXR file of one result by its name, if these raw values have one. Raises UserError without the library."""
        return {self.exr_name: self.exr(raw)} if self.exr_name else {}

    def metadata(self, raw: np.ndarray) -> dict[str, Any]:
        """Entries of a result's metadata.json, JSON values."""
        return {}

    # ---- datasets

    @classmethod
    def dataset_settings(cls, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the codec that follow from ``dataset.json``."""
        return {}

    @classmethod
    def option_settings(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the codec that follow from the options of ``mmdit data encode``."""
        return {}

    @classmethod
    def read_facts(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Read what this kind uses of ``dataset.json``: the facts, with what missing ones mean, and what is wrong with them."""
        return {}, []

    @property
    def ndim(self) -> int:
        """Dimensions of one raw array."""
        return 2 if self.channels is None else 3

    def shape_words(self) -> str:
        """The shape of a raw array, for messages."""
        return shape_words(self.channels)

    def as_array(self, raw: Raw) -> np.ndarray:
        """One raw array as numpy; UserError for another shape."""
        array = to_numpy(raw, self.what)
        array = self.fill_masked(array) if isinstance(array, np.ma.MaskedArray) else np.asarray(array)
        if array.ndim != self.ndim or array.shape[2:] not in ((), (self.channels,)) or 0 in array.shape:
            raise UserError(f"{self.what} has shape {tuple(array.shape)}: give {self.shape_words()}")
        return array


def _grey(image: Image.Image) -> np.ndarray | None:
    """The one channel, (H, W) uint8, of an image that stores it in colours; None = it is coloured, or one colour alone."""
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    if np.ptp(pixels, axis=-1).max() > _GREY_TOLERANCE or pixels.min() == pixels.max():
        return None
    return pixels[..., 1].astype(np.uint8)


def check_images(images: Tensor) -> Tensor:
    """Images to decode, (B, 3, H, W), as float32. Raises UserError for another shape."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images to decode have shape {tuple(images.shape)}: give (batch, 3, height, width)")
    return images.detach().float()


def non_finite(array: np.ndarray) -> list[str]:
    """List how many values are NaN or infinite, if any."""
    if not np.issubdtype(array.dtype, np.floating):
        return []
    count = int((~np.isfinite(array)).sum())
    return [f"{count} values are NaN or infinite"] if count else []
