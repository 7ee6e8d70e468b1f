"""Files that appear whole or not at all, and that others may read."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name and rename; what a killed run leaves is overwritten by the next one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def share_weights(folder: Path) -> None:
    """Give each safetensors file below ``folder`` the mode of a JSON file beside it or above.

    safetensors makes its files readable by their owner alone, which a group that shares a disk would find out late.
    """
    for weights in folder.rglob("*.safetensors"):
        beside = next((path for place in (weights.parent, folder) for path in place.glob("*.json")), None)
        if beside is not None:
            weights.chmod(beside.stat().st_mode & 0o777)
