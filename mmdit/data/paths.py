"""The rule of paths that a dataset's own files name: relative to the split's folder, and inside the dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmdit.errors import UserError
from mmdit.storage.json_text import quoted
from mmdit.storage.names import path_of

MAX_NAME, MAX_PATH = 255, 4095  # bytes; what file systems take


def check_split_name(split: str) -> None:
    """Raise UserError for what is not the name of a folder in the dataset, whatever letters its owner gave it."""
    if split in ("", ".", "..") or set(split) & {"/", os.sep, "\0"}:
        raise UserError(f"split {quoted(split)}: must be the name of a folder in the dataset, such as 'train'")


class PathRule:
    """Judges paths of one split.

    Args:
        root, split: the dataset and the folder in it.
        allow_outside: accept files outside root.
    """

    def __init__(self, root: Path, split: str, allow_outside: bool = False) -> None:
        self.dataset, self.allow_outside = root, allow_outside
        self.folder = os.path.abspath(root / split)
        self.root = os.path.abspath(root)

    def wrong(self, value: Any) -> str:
        """Why ``value`` is not the path of a file in the dataset; "" if it is one."""
        if not isinstance(value, str) or not value:
            return "a path is a string, relative to the split's folder"
        try:
            path = path_of(value)
            content = b"" if value.isascii() and len(value) <= MAX_NAME else os.fsencode(path)
        except UnicodeEncodeError:
            return "no file has such a name"
        if "\0" in value or len(content) > MAX_PATH or any(len(part) > MAX_NAME for part in content.split(b"/")):
            return "no file has such a name"
        if not self.allow_outside and self._leaves(path):
            return f"leads out of the dataset {self.dataset}; --allow_outside accepts that"
        return ""

    def _leaves(self, path: str) -> bool:
        if not os.path.isabs(path) and ".." not in path.split("/"):
            return False
        here = "/" if os.path.isabs(path) else self.folder
        for part in path.split("/"):
            if part == "..":
                if os.path.islink(here):
                    return True  # "link/.." is not where the link stands
                here = os.path.dirname(here)
            elif part not in ("", "."):
                here = os.path.join(here, part)
        return not here.startswith(self.root.rstrip("/") + "/")
