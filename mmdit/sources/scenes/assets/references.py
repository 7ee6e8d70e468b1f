"""Files that a mesh names: material files, textures, buffers. Only those below the user's folder are read."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from urllib.parse import unquote

import trimesh
from trimesh.resolvers import Resolver

MAX_BYTES = 2**28  # of a file, and of all that one mesh names together
# What Pillow decodes by itself; of others it starts programs (EPS), or they are no textures.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TGA", "TIFF", "WEBP")


class References(Resolver):
    """Reads what a mesh names, as trimesh asks for it.

    refused: why the mesh can't be used; notes: what of it was not read, and why; files: digest by path, of all that was read.

    Args:
        root: the user's folder; nothing outside it is read, nor over a network.
        folder: of the mesh, in it.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root.resolve(), folder.resolve()
        self.refused: list[str] = []
        self.notes: list[str] = []
        self.files: dict[str, str] = {}
        self._left = MAX_BYTES

    def get(self, name: str) -> bytes:
        """Return the bytes of a file. Raises FileNotFoundError without it: trimesh goes on, and a note names it."""
        path = self._find(str(name))
        if path is None:
            is_outside = self._inside(_plain(str(name))) is None
            reason = f"is outside the folder {self.root}: not read" if is_outside else "is not there"
            note = f"names {str(name)[:100]!r}, which {reason}"
            if note not in self.notes:
                self.notes.append(note)
            raise FileNotFoundError(note)
        size = path.stat().st_size
        if size > self._left:
            self._refuse(f"the files that it names have more than {MAX_BYTES} bytes")
        self._left -= size
        content = path.read_bytes()
        self.files[path.relative_to(self.root).as_posix()] = hashlib.sha256(content).hexdigest()
        return content

    def _find(self, name: str) -> Path | None:
        if "://" in name:
            self._refuse(f"names {name[:80]!r}: nothing is read from a network; save the file beside it")
        plain = _plain(name)
        for candidate in dict.fromkeys((plain, unquote(plain))):
            inside = self._inside(candidate)
            if inside is not None and inside.is_file():
                return inside
        # Exporters write where a file lay on their own disk: the same name beside the mesh is meant.
        beside = self._inside(plain.rpartition("/")[2])
        return beside if beside is not None and beside.is_file() else None

    def _inside(self, name: str) -> Path | None:
        if not name or "\0" in name or name[1:2] == ":":
            return None
        path = Path(os.path.realpath(self.folder / name))
        return path if path.is_relative_to(self.root) else None

    def _refuse(self, reason: str) -> None:
        self.refused.append(reason)
        raise PermissionError(reason)

    def keys(self) -> list[str]:
        """Nothing is listed: trimesh asks for names."""
        return []

    def write(self, name: str, data: bytes) -> None:
        raise PermissionError("meshes are only read")

    def namespaced(self, namespace: str) -> References:
        return self


def _plain(name: str) -> str:
    return name.replace("\\", "/").strip()


def load_scene(content: bytes, file_type: str, references: References) -> trimesh.Scene:
    """Parse a mesh file. Raises whatever trimesh raises."""
    return trimesh.load_scene(io.BytesIO(content), file_type=file_type, resolver=references, process=False)
