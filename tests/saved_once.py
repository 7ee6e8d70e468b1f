"""Networks that several tests read: saved when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def saved_once(folder: Path, save: Callable[[Path], None]) -> Path:
    """``folder``, which ``save`` writes where it does not exist; its random weights are the same each time."""
    if not folder.exists():
        torch.manual_seed(0)
        save(folder)
    return folder
