"""The command line in this process: arguments in, exit code and text out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error line; asserts that it is the only thing on stderr but for notes, and that nothing was traced."""
        lines = [line for line in self.err.splitlines() if not line.startswith("mmdit: note: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mmdit: error: ")
        return lines[0]


@pytest.fixture
def mmdit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run ``mmdit`` with arguments in an empty folder."""
    from mmdit.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMDIT_DEBUG", raising=False)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A PNG of 60 x 40 pixels (width x height)."""
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
