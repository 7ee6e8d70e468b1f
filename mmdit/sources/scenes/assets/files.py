"""The mesh files of a folder: which there are, what each shows, and what licence lies beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmdit.errors import UserError
from mmdit.names import BACKGROUND_CLASSES
from mmdit.prompt import has_brace
from mmdit.storage.digests import digest_file
from mmdit.storage.json_text import quoted
from mmdit.storage.listing import list_images, visible
from mmdit.storage.names import text_of

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
MAX_CATEGORIES = 253  # with floor and wall, labels of 8 bits
MAX_NAME = 64  # characters of a category
LICENCE_STEMS = ("license", "licence", "copying")
MAX_LICENCE_BYTES = 2**20


@dataclass(frozen=True)
class AssetFile:
    """path: of the mesh below the folder, with "/"; category: what it shows."""

    path: str
    category: str


def list_assets(folder: Path) -> list[AssetFile]:
    """List the meshes of a folder, in the order of their paths.

    A mesh in a subfolder has the name of the first one below ``folder`` as its category, others have that of their file.
    In names "_" is read as a space.

    Raises:
        UserError: no folder, no mesh in it, too many categories, or a name that can't be one.
    """
    if not folder.is_dir():
        raise UserError(f"assets {folder}: no such folder: give one with meshes ({', '.join(SUFFIXES)})")
    found = []
    for path in list_images(folder, recursive=True, suffixes=SUFFIXES):
        first, _, rest = text_of(path).partition("/")
        category = " ".join((first if rest else Path(first).stem).replace("_", " ").split())
        if not category or len(category) > MAX_NAME or category.lower() in BACKGROUND_CLASSES:
            raise UserError(
                f"{folder / path}: {quoted(category)} is no name of a category: rename it; at most {MAX_NAME} characters, not "
                f"{' or '.join(BACKGROUND_CLASSES)}"
            )
        if has_brace(category):
            raise UserError(
                f"{folder / path}: {quoted(category)} is no name of a category: in prompts braces mark what a picture stands "
                "for: rename it without them"
            )
        found.append(AssetFile(path, category))
    if not found:
        raise UserError(f"assets {folder}: has no mesh: give a folder with {', '.join(SUFFIXES)} files")
    count = len({asset.category for asset in found})
    if count > MAX_CATEGORIES:
        raise UserError(
            f"assets {folder}: has meshes of {count} categories, at most {MAX_CATEGORIES} fit: put meshes of one kind into a "
            "subfolder of its name"
        )
    return found


def find_licence(folder: Path, path: str) -> dict[str, str] | None:
    """The nearest licence file beside a mesh or above it, up to ``folder``: its path and digest, and how it begins.

    Such a file has "license", "licence" or "copying" in its name.
    """
    place = (folder / path).parent
    while True:
        for file in visible(place.iterdir()):
            if any(stem in file.stem.lower() for stem in LICENCE_STEMS) and file.is_file():
                if file.suffix.lower() in SUFFIXES or file.stat().st_size > MAX_LICENCE_BYTES:
                    continue
                text = file.read_bytes().decode("utf-8", "replace")
                return {
                    "file": text_of(file.relative_to(folder).as_posix()),
                    "sha256": digest_file(file),
                    "begins": " ".join(text.split())[:200],
                }
        if place == folder:
            return None
        place = place.parent
