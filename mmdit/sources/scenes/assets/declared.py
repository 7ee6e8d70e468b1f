"""What a mesh file says about its own size, before memory is taken for it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

MAX_FACES = 500_000
MAX_VALUES = 2**24  # of all accessors of a glTF, and of all vertices
MAX_NODES = 20_000
# glTF's meshes that trimesh does not decode without other libraries.
COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")
GLB_MAGIC, GLB_JSON = b"glTF", 0x4E4F534A


class BadMesh(ValueError):
    """Why a mesh can't be used, without its name."""


def too_many(count: int) -> BadMesh:
    """Build the error for ``count`` faces."""
    return BadMesh(f"has {count} faces, at most {MAX_FACES} are taken: simplify it")


def check_declared(content: bytes, suffix: str) -> None:
    """Raise BadMesh for a file that announces more than is taken, or more than it has."""
    CHECKS[suffix](content)


def _check_obj(content: bytes) -> None:
    faces = content.count(b"\nf ") + content.count(b"\nf\t")
    if faces > MAX_FACES:
        raise too_many(faces)


def _check_stl(content: bytes) -> None:
    text = content[:512].lstrip().lower().startswith(b"solid") and b"facet" in content[:4096]
    faces = content.count(b"facet normal") if text else struct.unpack_from("<I", content.ljust(84, b"\0"), 80)[0]
    if not text and 84 + 50 * faces > len(content):
        raise BadMesh(f"announces {faces} faces and ends before")
    if faces > MAX_FACES:
        raise too_many(faces)


def _check_ply(content: bytes) -> None:
    head, end, _ = content[: 2**16].partition(b"end_header")
    if not content.startswith(b"ply") or not end:
        raise BadMesh("is no PLY: has no header")
    counts = {}
    for line in head.decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "element":
            if not words[2].isdigit() or len(words[2]) > 12 or int(words[2]) > len(content):
                raise BadMesh(f"announces {words[2][:20]} of {words[1][:20]!r} in {len(content)} bytes")
            counts[words[1]] = int(words[2])
    if counts.get("face", 0) > MAX_FACES:
        raise too_many(counts["face"])


def _check_glb(content: bytes) -> None:
    if content[:4] != GLB_MAGIC or len(content) < 20:
        raise BadMesh("is no GLB: does not start with 'glTF'")
    _, version, _, length, kind = struct.unpack_from("<4sIIII", content)
    if version != 2:
        raise BadMesh(f"is version {version} of GLB: version 2 is read")
    if kind != GLB_JSON or 20 + length > len(content):
        raise BadMesh("is no whole GLB: its first part is not JSON, or is cut off")
    _check_tree(content[20 : 20 + length])


def _check_tree(text: bytes) -> None:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        raise BadMesh("its JSON can't be read") from None
    if not isinstance(tree, dict):
        raise BadMesh("its JSON is no object")
    required = [str(name) for name in _list(tree, "extensionsRequired")]
    compressed = next((name for name in COMPRESSED if name in required), None)
    if compressed is not None:
        raise BadMesh(f"is compressed ({compressed}): save it without compression")
    accessors = [_count(entry, "count") for entry in _list(tree, "accessors")]
    views = [_count(entry, "byteLength") for entry in _list(tree, "bufferViews")]
    nodes = len(_list(tree, "nodes"))
    if sum(accessors) > MAX_VALUES or sum(views) > 64 * MAX_VALUES or nodes > MAX_NODES:
        raise BadMesh(
            f"announces {sum(accessors)} values, {sum(views)} bytes and {nodes} nodes; at most {MAX_VALUES}, "
            f"{64 * MAX_VALUES} and {MAX_NODES} are taken: simplify it"
        )
    children: set[int] = set()
    for node in _list(tree, "nodes"):
        for child in _list(node, "children") if isinstance(node, dict) else []:
            if not isinstance(child, int) or child in children:
                raise BadMesh("its nodes are no tree: one is below two others, or below itself")
            children.add(child)
    for scene in _list(tree, "scenes"):
        for root in _list(scene, "nodes") if isinstance(scene, dict) else []:
            if not isinstance(root, int) or root in children:
                raise BadMesh("its nodes are no tree: a scene starts at one that is below another")


def _list(values: dict[str, Any], key: str) -> list[Any]:
    found = values.get(key, [])
    if not isinstance(found, list):
        raise BadMesh(f"its {key!r} is no list")
    return found


def _count(entry: Any, key: str) -> int:
    count = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise BadMesh(f"its JSON has a {key!r} that is no number of things")
    return count


CHECKS: dict[str, Callable[[bytes], None]] = {
    ".obj": _check_obj,
    ".stl": _check_stl,
    ".ply": _check_ply,
    ".glb": _check_glb,
    ".gltf": _check_tree,
}
