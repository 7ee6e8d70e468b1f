"""Which files are videos: by their first bytes, else by their names."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
_PICTURE_BRANDS = (b"avif", b"heic", b"heix", b"heim", b"mif1")  # of the same container as mp4
_MATROSKA = b"\x1a\x45\xdf\xa3"  # and webm


def is_video(path: Path) -> bool:
    """Whether a file is a video: an animated GIF too, and not one of a single picture.

    A file with a video's name is one, whatever damage keeps its first bytes from saying so, unless it is a picture.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    if head[:4] == b"GIF8":
        return _num_pictures(path) != 1
    if head[4:8] == b"ftyp":
        return head[8:12] not in _PICTURE_BRANDS
    if head[:4] == _MATROSKA or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return path.suffix.lower() in VIDEO_SUFFIXES and _num_pictures(path) == 0


def _num_pictures(path: Path) -> int:
    """How many pictures Pillow finds in a file; 0 = it is no picture."""
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # decoders raise anything for a damaged file
        return 0
