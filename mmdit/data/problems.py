"""What is wrong with a dataset, one thing at a time: the loader raises the first, ``mmdit data check`` lists all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmdit.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        file: of the dataset, relative to its folder.
        reason: what is wrong, the value, and what would be right.
        sample: "split/id", or "" where it is not about one.
        line: of the file, from 1; 0 = the whole file.
    """

    file: str
    reason: str
    sample: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """The file, with the line if it is about one."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" (sample {self.sample})" if self.sample else "")

    def error(self, root: Path) -> UserError:
        """Return it as an error that names the whole path."""
        line = f", line {self.line}" if self.line else ""
        return UserError(f"{root / self.file}{line}: {self.reason}")
