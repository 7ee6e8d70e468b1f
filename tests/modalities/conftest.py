"""Helpers for the tests of codecs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.modalities import MODALITIES, build_codec


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def load() -> Callable[[Path, str], np.ndarray]:
    """Read a file as a dataset's: depth in metres, of millimetres."""
    return lambda path, name: build_codec(MODALITIES[name]).read(path, {"depth_scale": 0.001}).values


@pytest.fixture
def save() -> Callable[..., Path]:
    """Save an array as an image; returns the path."""

    def write(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
        Image.fromarray(array, mode=mode).save(path) if mode else Image.fromarray(array).save(path)
        return path

    return write
