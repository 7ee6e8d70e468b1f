"""Pictures for people in labelled grids. All uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _INK = (255, 255, 255), (24, 24, 24)
_MIN_TILE, _MAX_TILE = 128, 512


def tile(picture: np.ndarray) -> Image.Image:
    """Enlarge a small picture by a whole factor to 128 pixels or more; shrink one beyond 512."""
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    if max(height, width) > _MAX_TILE:
        image.thumbnail((_MAX_TILE, _MAX_TILE), Image.Resampling.LANCZOS)
        return image
    factor = max(1, -(-_MIN_TILE // max(height, width)))
    return image.resize((width * factor, height * factor), Image.Resampling.NEAREST)


def labelled_grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
) -> Image.Image:
    """Draw pictures in rows and columns with labels above and to the left, and a caption under each picture.

    ``rows[i][j]`` is (H, W, 3) uint8 or None for an empty place; an empty ``row_labels`` or caption takes no room.
    """
    tiles = [[None if picture is None else tile(picture) for picture in row] for row in rows]
    width = max(t.width for row in tiles for t in row if t is not None)
    height = max(t.height for row in tiles for t in row if t is not None)
    font_size = max(11, width // 11)
    font = ImageFont.load_default(size=font_size)
    line = int(font_size * 1.35)
    gap = max(2, width // 32)
    left = max((int(font.getlength(text)) for text in row_labels), default=0) + (2 * gap if any(row_labels) else gap)
    below = line if captions else 0
    num_columns = max(len(row) for row in tiles)
    size = (left + num_columns * (width + gap), line + gap + len(tiles) * (height + below + gap))
    canvas = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, text in enumerate(column_labels):
        draw.text((left + column * (width + gap), gap // 2), text, _INK, font)
    for row, pictures in enumerate(tiles):
        top = line + gap + row * (height + below + gap)
        if row < len(row_labels):
            draw.text((gap, top + (height - line) // 2), row_labels[row], _INK, font)
        for column, picture in enumerate(pictures):
            x = left + column * (width + gap)
            if picture is not None:
                canvas.paste(picture, (x, top))
            if captions:
                draw.text((x, top + height + 1), captions[row][column], _INK, font)
    return canvas
