"""Versions of installed packages, as reports and results record them."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

NOT_INSTALLED = "not installed"
DISTRIBUTION = "multimodal-dit"
# What a result depends on.
RESULTS = (DISTRIBUTION, "torch", "diffusers", "numpy", "pillow")


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or "not installed"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def versions(distributions: Iterable[str] = RESULTS) -> dict[str, str]:
    """Distribution -> version, Python's first."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in distributions}
