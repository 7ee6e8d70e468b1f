"""Tile sizes measured offline, and the names of the targets they belong to.

A program reads the measurements once and never tunes: ``benchmarks/tune.py`` writes them, one JSON file per GPU model.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

import torch

from mmdit_kernels.dispatch import interpreting

ENVIRONMENT_VARIABLE = "MMDIT_KERNELS_TUNED"


def bucket(size: int) -> int:
    """Round a length up to a power of two, at least 64."""
    return max(64, 1 << (size - 1).bit_length())


@functools.cache
def _target(device: torch.device) -> str:
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def target_of(device: torch.device) -> str:
    """Return the compilation target: "sm_90", "gfx942", …, or "interpreter"."""
    return "interpreter" if interpreting() else _target(device)


def tuned_path(device: torch.device | None = None) -> Path:
    """Return the file of measured tiles: ``MMDIT_KERNELS_TUNED``, or one in the user's cache named after the GPU.

    ``device``: whose GPU; None = the current one.
    """
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    if given:
        return Path(given)
    name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "cpu"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mmdit_kernels" / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower()}.json"


@functools.cache
def _table(path: Path) -> dict[str, list[int]]:
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text())
        return {key: [int(value) for value in values] for key, values in table["configs"].items()}
    except (OSError, ValueError) as error:
        problem = str(error)
    except (AttributeError, KeyError, TypeError):
        problem = 'it is not {"configs": {name: numbers}}'
    raise ValueError(f"cannot read the tile sizes in {path}: {problem}; delete the file or tune again")


@functools.cache
def _path(device: torch.device | None) -> Path:
    return tuned_path(device)


def tuned(key: str, device: torch.device | None = None) -> list[int] | None:
    """Return the measured tile sizes for a key, or None; ``device`` is that of the tensors, None = the current GPU."""
    if interpreting():
        return None
    return _table(_path(device if device is not None and device.type == "cuda" else None)).get(key)
