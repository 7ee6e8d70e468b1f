from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # attention_cases.py

FULL_GRID = "MMDIT_KERNELS_FULL_GRID"


@pytest.fixture
def full_grid() -> None:
    """Skip the long grids unless asked for: hours in the interpreter, and for the compiler."""
    if not os.environ.get(FULL_GRID):
        pytest.skip(f"set {FULL_GRID}=1 to run the whole grid")
