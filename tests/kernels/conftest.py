from __future__ import annotations

import os

import pytest

FULL_GRID = "MMDIT_KERNELS_FULL_GRID"


@pytest.fixture
def full_grid() -> None:
    """Skip the long grids unless asked for: hours in the interpreter, and for the compiler."""
    if not os.environ.get(FULL_GRID):
        pytest.skip(f"set {FULL_GRID}=1 to run the whole grid")
