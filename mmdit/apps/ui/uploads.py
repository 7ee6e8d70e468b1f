"""What visitors upload and draw -> pictures, readings of given modalities, masks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmdit.apps.ui.limits import Limits
from mmdit.errors import UserError
from mmdit.modalities import Codec, Reading
from mmdit.modalities.orientation import turn_together
from mmdit.modalities.rgb import RGBCodec

DEPTH_LABEL = "A depth file holds"  # of the page's choice for depth_values
DEPTH_WORDS = {
    "auto": "what the file looks like it holds",
    "metric": "distances, larger = farther",
    "relative": "relative values, as this page writes them",
    "near_white": "relative values, near is white",
}
Drawing = Mapping[str, Any]  # gradio's {"background", "layers", "composite"}, PIL images each


def read_upload(path: str | Path, codec: Codec, limits: Limits, options: Mapping[str, Any] | None = None) -> Reading:
    """Read an uploaded file of a modality, at most ``limits.side`` pixels long.

    Raises:
        UserError: one that the codec refuses, or too many pixels; it names the file as its owner does.
    """
    path = Path(path)
    try:
        _check_declared(path, limits)
        reading = codec.read(path, options or {})
        reasons = codec.check_given(reading)
    except UserError as error:
        raise UserError(_in_the_page(str(error), path)) from None
    if reasons:
        raise UserError(_in_the_page(f"{path}: {reasons[0]}", path))
    if reading.note is not None:
        reading = reading.replace(note=_in_the_page(reading.note, path))
    height, width = reading.values.shape[:2]
    if max(height, width) > limits.side:
        scale = limits.side / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        reading = reading.replace(values=codec.resize(reading.values, *size))
    return reading


def read_image(path: str | Path, limits: Limits) -> Image.Image:
    """Read an uploaded picture as RGB, as ``read_upload``."""
    return Image.fromarray(read_upload(path, RGBCodec(), limits).values)


def is_drawn(drawing: Drawing | None) -> bool:
    """Whether a visitor drew anything."""
    return drawing is not None and any(_alpha(layer).any() for layer in drawing["layers"])


def read_drawing(drawing: Drawing, codec: Codec, size: tuple[int, int]) -> Reading:
    """Read a drawing on the codec's own sheet, at a size (height, width)."""
    sheet = next(iter(codec.drawing_colors().values()))
    composite = drawing["composite"].convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", composite.size, (*sheet, 255)), composite).convert("RGB")
    reading = codec.from_drawing(np.asarray(flat))
    return reading.replace(values=codec.resize(reading.values, *size))


def read_given(
    codecs: Mapping[str, Codec],
    files: Mapping[str, str | None],
    drawings: Mapping[str, Drawing | None],
    *,
    native: tuple[int, int],
    limits: Limits,
    options: Mapping[str, Any],
) -> dict[str, Reading]:
    """Read the modalities that are given: of each its file, else its drawing.

    Args:
        codecs: of the model's modalities.
        files: modality -> path of an upload, None = none; modalities that are not given are left out.
        drawings: the same of drawings, which have the size of the files, or the model's ``native`` (height, width).
        limits: for files.
        options: how files are read, see ``Codec.read``.

    Raises:
        UserError: a modality with neither, none or all modalities given, a bad file, or files that differ in size.
    """
    if not files:
        raise UserError("nothing is given: choose at least one modality, and upload or draw it")
    if len(files) == len(codecs):
        raise UserError(f"all modalities are given ({', '.join(files)}): leave out at least one to be generated")
    for name, path in files.items():
        if path is None and not is_drawn(drawings[name]):
            raise UserError(
                f"{name} is chosen as given, and has neither a file nor a drawing: upload one, or draw on its sheet"
            )
    read = {name: read_upload(path, codecs[name], limits, options) for name, path in files.items() if path is not None}
    read = turn_together(read, codecs)
    sizes = {name: reading.values.shape[:2] for name, reading in read.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
        raise UserError(f"the files differ in size (height x width): {listed}; give aligned maps of one size")
    size = next(iter(sizes.values()), native)
    drawn = {name: drawings[name] for name in files if name not in read}
    read |= {name: read_drawing(drawing, codecs[name], size) for name, drawing in drawn.items() if drawing is not None}
    return {name: read[name] for name in codecs if name in read}


def has_picture(drawing: Drawing | None) -> bool:
    """Whether an editor holds a picture."""
    return drawing is not None and drawing["background"] is not None and bool(_alpha(drawing["background"]).any())


def read_edit(drawing: Drawing | None, limits: Limits) -> tuple[Image.Image, np.ndarray]:
    """A picture and what a visitor painted over: RGB, and (H, W) bool of its size, True = generate anew.

    Raises:
        UserError: no picture, nothing painted, or too many pixels.
    """
    if drawing is None or not has_picture(drawing):
        raise UserError("there is no picture to edit: upload one, or take an example")
    picture, inside = _read_painted(drawing, limits)
    if not inside.any():
        raise UserError("nothing is painted: paint with the brush over what is to be generated anew")
    return picture, inside


def read_subject(drawing: Drawing, limits: Limits) -> Image.Image | tuple[Image.Image, np.ndarray]:
    """A subject's picture, with what a visitor painted over as its mask (H, W) bool, True = subject; nothing = all of it.

    Raises:
        UserError: too many pixels.
    """
    picture, inside = _read_painted(drawing, limits)
    return (picture, inside) if inside.any() else picture


def _read_painted(drawing: Drawing, limits: Limits) -> tuple[Image.Image, np.ndarray]:
    """The picture of an editor as RGB, and where it is painted over, (H, W) bool."""
    background = drawing["background"]
    limits.check_pixels("the picture", *background.size)
    inside = np.zeros(background.size[::-1], dtype=bool)
    for layer in drawing["layers"]:
        alpha = Image.fromarray(_alpha(layer))
        if alpha.size != background.size:
            alpha = alpha.resize(background.size, Image.Resampling.NEAREST)
        inside |= np.asarray(alpha) > 127
    paper = Image.new("RGBA", background.size, "white")
    picture = limits.shrink(Image.alpha_composite(paper, background.convert("RGBA")).convert("RGB"))
    if picture.size != background.size:
        inside = np.asarray(Image.fromarray(inside).resize(picture.size, Image.Resampling.NEAREST))
    return picture, inside


def _alpha(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGBA"))[..., 3]


def _check_declared(path: Path, limits: Limits) -> None:
    """Judge an image by its header, before it takes memory; what is no image is the codec's to judge."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                size = image.size
    except Image.DecompressionBombError:
        raise UserError(f"{path.name}: has too many pixels: give at most {limits.megapixels} million") from None
    except Exception:  # an array, or a file that the codec refuses in its own words
        return
    limits.check_pixels(path.name, *size)


def _in_the_page(text: str, path: Path) -> str:
    """A message about a file as its owner knows it, and about an option as the page calls it."""
    return text.replace(str(path), path.name).replace("--depth_values", f"'{DEPTH_LABEL}'")
