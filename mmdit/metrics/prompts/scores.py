"""Numbers of one picture, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdit.metrics.arrays import MeanWithError

# metric -> 0 or 1, or a number; None where it has no meaning for the picture.
Scores = dict[str, float | None]


class ScoreTable:
    """Means of scores with their standard errors; None is left out."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.means = {name: MeanWithError() for name in metrics}
        self.num_samples = 0

    def add(self, scores: Mapping[str, float | None]) -> None:
        self.num_samples += 1
        for name, value in scores.items():
            if value is not None:
                self.means[name].add(value)

    def compute(self) -> dict[str, Any]:
        """metric -> mean, "standard_error": metric -> error, "num_samples"."""
        return {
            **{name: each.mean for name, each in self.means.items()},
            "standard_error": {name: each.error for name, each in self.means.items()},
            "num_samples": self.num_samples,
        }


def place(tree: dict[str, Any], name: str, value: Any) -> None:
    """Put a value at a dotted name."""
    *above, last = name.split(".")
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = value
