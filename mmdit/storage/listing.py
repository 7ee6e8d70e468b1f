"""Which files of a folder count: images by their suffix, and nothing that a system leaves behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of Windows, of Synology, of macOS's archives. All else that systems leave behind starts with a dot.
_LEFT_BEHIND = frozenset({"thumbs.db", "desktop.ini", "@eadir", "__macosx", "lost+found"})


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is not the user's data: ``._a.png``, ``.ipynb_checkpoints``, ``Thumbs.db``."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def is_image(name: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> bool:
    """Tell by its name whether a file is an image, in upper case too."""
    return name.lower().endswith(suffixes) and not is_hidden(name)


def list_images(folder: str | Path, recursive: bool = False, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """List the images of a folder, which end so, as paths below it, with "/", in the order of their parts.

    Links to folders are followed, except those to a folder above themselves, which would never end. Hidden names, pipes
    and devices are left out. A link that leads nowhere is listed by its name: whoever reads it says so.
    """
    return sorted(_walk(os.fspath(folder), "", frozenset(), recursive, suffixes), key=lambda name: name.split("/"))


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sort paths, without those whose file is hidden."""
    return sorted(path for path in paths if not is_hidden(path.name))


def list_folders(folder: str | Path) -> list[str]:
    """List the names of the folders in a folder that are not hidden, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and stat.S_ISDIR(_mode(entry)))


def _walk(root: str, inside: str, above: frozenset[str], recursive: bool, suffixes: tuple[str, ...]) -> Iterator[str]:
    here = os.path.realpath(os.path.join(root, inside))
    if here in above:
        return
    with os.scandir(here) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            mode = _mode(entry)
            if stat.S_ISDIR(mode):
                if recursive:
                    yield from _walk(root, f"{inside}{entry.name}/", above | {here}, recursive, suffixes)
            elif is_image(entry.name, suffixes) and (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                yield inside + entry.name


def _mode(entry: os.DirEntry[str]) -> int:
    """What an entry is, behind its links; a link that leads nowhere, or in a circle, is itself."""
    try:
        return entry.stat().st_mode
    except OSError:
        return stat.S_IFLNK if entry.is_symlink() else 0
