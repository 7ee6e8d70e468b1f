"""One array of an HDF5 file from elsewhere: its kind, size and origin are checked before anything is read."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError, one_line

NAME = "dataset"
MAX_VALUES = 2**28  # Hypersim's largest have 768 x 1024 x 3
MAX_LINKS = 8


@dataclass(frozen=True)
class Reader:
    """Reads files below ``root``; those that point outside it are refused unless ``allow_outside``."""

    root: Path
    allow_outside: bool = False

    def read(self, path: Path, num_dimensions: int | None = None, kinds: str = "fiu") -> np.ndarray:
        """Read the array "dataset" of a file.

        Args:
            path: the file.
            num_dimensions: 2 = (H, W), 3 = (H, W, 3), None = any.
            kinds: of numbers, as NumPy's dtype.kind: f, i, u.

        Raises:
            UserError: no such file, a damaged one, another kind of thing, one too large, one that leads out of the source.
        """
        import h5py

        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise UserError(f"{path}: is not a regular file")
            with h5py.File(path, "r") as file:
                self._check_links(file, path)
                found = file[NAME]
                reason = self._unusable(found, num_dimensions, kinds)
                if reason:
                    raise UserError(f"{path}: {reason}")
                self._check_origin(found, path)
                return found[:]
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except Exception as error:  # HDF5's library raises many kinds
            reason = one_line(error, 160)
            raise UserError(f"{path}: damaged, or not Hypersim's: {reason}") from None

    def _unusable(self, found: Any, num_dimensions: int | None, kinds: str) -> str:
        import h5py

        if not isinstance(found, h5py.Dataset) or found.shape is None:
            return f"{NAME!r} is {'a group' if isinstance(found, h5py.Group) else 'empty'}, not an array of numbers"
        if found.dtype.kind not in kinds:
            what = "whole numbers" if "f" not in kinds else "numbers"
            return f"{NAME!r} holds {found.dtype}, not {what}"
        shape = found.shape
        if num_dimensions and (len(shape) != num_dimensions or 0 in shape or shape[2:] not in ((), (3,))):
            return f"has shape {shape}, not (height, width{', 3' if num_dimensions == 3 else ''})"
        if math.prod(shape) > MAX_VALUES:
            return f"declares {shape}, over the limit of {MAX_VALUES} numbers"
        return ""

    def _check_links(self, file: Any, path: Path) -> None:
        """Follow "dataset" by name before it is opened: an external link would open whatever file it names."""
        import h5py

        name = NAME
        for _ in range(MAX_LINKS):
            link = None
            parts = [part for part in name.split("/") if part]
            for end in range(1, len(parts) + 1):
                link = file.get("/".join(parts[:end]), getlink=True)
                if not isinstance(link, h5py.HardLink):
                    break
            if isinstance(link, h5py.ExternalLink):
                self._check_file(link.filename, path)
                return
            if not isinstance(link, h5py.SoftLink):
                return
            name = "/".join([link.path, *parts[end:]])
        raise UserError(f"{path}: {NAME!r} is a chain of more than {MAX_LINKS} links")

    def _check_origin(self, found: Any, path: Path) -> None:
        self._check_file(found.file.filename, path)
        for name, *_ in found.external or ():
            self._check_file(os.fsdecode(name) if isinstance(name, bytes) else name, path, beside=False)
        if found.is_virtual:
            for source in found.virtual_sources():
                if source.file_name != ".":
                    self._check_file(source.file_name, path)

    def _check_file(self, name: str, path: Path, beside: bool = True) -> None:
        if self.allow_outside or os.path.realpath(name) == os.path.realpath(path):
            return
        # HDF5 looks for linked files beside the file and in the working directory, for raw data in the latter alone.
        places = [Path(name)] if not beside else [path.parent / name, Path(name)]
        existing = [place for place in places if place.exists()] or places[:1]
        root = self.root.resolve()
        if not all(place.resolve().is_relative_to(root) for place in existing):
            raise UserError(f"{path}: its numbers are in {name!r}, outside {self.root}; --allow_outside accepts that")
