"""EXIF's orientation: which way a camera was held, as a turn of a raw array, and which modalities of a sample are turned.

Cameras store pixels as the sensor has them, with a tag that says how to turn them. An image that has the tag is read as
seen. Maps of it may have been made from either, and seldom have the tag themselves: they are turned with it where their size
says that they are as stored, left where it says that they are as seen, and refused where it can't tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmdit.errors import UserError

if TYPE_CHECKING:
    from mmdit.modalities.codec import Codec
    from mmdit.modalities.reading import Reading

# tag -> (x, y) of a direction in the turned image from (x, y) in the stored one; x right, y up
DIRECTIONS = {
    1: np.array([[1, 0], [0, 1]]),
    2: np.array([[-1, 0], [0, 1]]),
    3: np.array([[-1, 0], [0, -1]]),
    4: np.array([[1, 0], [0, -1]]),
    5: np.array([[0, -1], [-1, 0]]),
    6: np.array([[0, 1], [-1, 0]]),
    7: np.array([[0, 1], [1, 0]]),
    8: np.array([[0, -1], [1, 0]]),
}


def turn_pixels(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W[, C]) as the tag says; sides are exchanged from 5 on."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)  # now 5 -> 1, 6 -> 2, 7 -> 3, 8 -> 4
        orientation -= 4
    rows = slice(None, None, -1 if orientation in (3, 4) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3) else 1)
    return np.ascontiguousarray(array[rows, columns]) if orientation > 1 else np.ascontiguousarray(array)


def turn_together(readings: Mapping[str, Reading], codecs: Mapping[str, Codec]) -> dict[str, Reading]:
    """Turn the maps of one sample as its image's tag says, where their sizes call for it.

    Raises:
        UserError: sizes that don't tell whether a map is as stored or as seen.
    """
    tagged = [name for name, reading in readings.items() if codecs[name].is_image and reading.orientation != 1]
    if not tagged:
        return dict(readings)
    image = readings[tagged[0]]
    height, width = image.values.shape[:2]
    stored = (width, height) if image.orientation >= 5 else (height, width)
    settled = {}
    for name, reading in readings.items():
        size = reading.values.shape[:2]
        if reading.orientation != 1 or reading.as_seen:
            settled[name] = reading
        elif size == stored == (height, width):
            raise UserError(
                f"{tagged[0]} has EXIF orientation {image.orientation}, and its size does not tell whether {name} is turned "
                f"already: save {tagged[0]} turned, without that tag"
            )
        elif size == stored:
            turned = codecs[name].turn(reading.values, image.orientation)
            settled[name] = reading.replace(values=turned, orientation=image.orientation)
        else:
            settled[name] = reading
    return settled
