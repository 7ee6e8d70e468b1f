"""Maps as pictures for people: coloured depth and normals, palettes, labelled grids. All uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmdit.modalities.codecs import SegmentationCodec

# Rising lightness, so that order survives greyscale and colour-blind eyes: far is dark blue, near is pale yellow.
_DEPTH_COLORS = np.array(
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
_BACKGROUND, _INK = (255, 255, 255), (24, 24, 24)
_MIN_TILE, _MAX_TILE = 128, 512


def color_depth(relative: np.ndarray, space: str) -> np.ndarray:
    """Colour relative depth (H, W) in [0, 1] of a codec's space: near is bright in both; returns (H, W, 3) uint8."""
    near = relative if space == "disparity" else 1 - relative
    position = np.clip(np.nan_to_num(near), 0, 1) * (len(_DEPTH_COLORS) - 1)
    knots = np.arange(len(_DEPTH_COLORS))
    return (
        np.stack([np.interp(position, knots, _DEPTH_COLORS[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)
    )


def color_normal(normal: np.ndarray) -> np.ndarray:
    """Unit vectors (H, W, 3) -> (n + 1) / 2 x 255, the layout of datasets."""
    return ((np.clip(normal, -1, 1) + 1) / 2 * 255).round().astype(np.uint8)


def color_segmentation(labels: np.ndarray, codec: SegmentationCodec) -> np.ndarray:
    """Label ids (H, W) -> the palette's colours; an id outside it is grey."""
    colors = np.full((max(int(labels.max()), int(codec.ids.max())) + 1, 3), 128, dtype=np.uint8)
    colors[codec.ids.numpy()] = codec.colors
    return colors[labels]


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
