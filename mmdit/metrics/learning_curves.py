"""Learning curves of training runs: measures over samples seen and over time, and what is read off them.

A run's learning rate decays at its end, so a point before the end is not what a shorter run would have reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mmdit.metrics.prompts.kinds import KINDS
from mmdit.metrics.sweep import columns, higher_is_better
from mmdit.metrics.tasks import PROMPTS, TASKS

# Kinds of prompts that a learning curve is of, where the network takes prompts, with what of them is measured beside the kind's
# own metrics. The columns are named as in a report.
PROMPT_KINDS: dict[str, tuple[str, ...]] = {
    "text.one": (),
    "text.two": (),
    "subject": ("copy_rate",),
    "subjects.two": (),
}
SAMPLES, PROCESSOR_SECONDS, WALL_SECONDS = "samples", "processor_seconds", "wall_seconds"


def curve_columns() -> list[str]:
    """Names of all measures of a point: <task>_<column of a sweep>, and prompts.<kind>.<metric>."""
    costs = {"network_evaluations", "seconds_per_image"}
    maps = [f"{task}_{column}" for task in TASKS for column in columns() if column not in costs]
    prompts = ((kind, metric) for kind, more in PROMPT_KINDS.items() for metric in (*KINDS[kind].metrics, *more))
    return [*maps, *(f"{PROMPTS}.{kind}.{metric}" for kind, metric in prompts)]


def more_is_better(column: str) -> bool:
    """Whether more is better in a column of ``curve_columns``."""
    if column.startswith(f"{PROMPTS}."):
        kind, metric = column.removeprefix(f"{PROMPTS}.").rsplit(".", 1)
        return metric in KINDS[kind].higher_is_better
    return higher_is_better(column.split("_", 1)[1])


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of the runs of one variant; the deviation of fewer than two is NaN.

    count: runs that have a value.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """NaNs, of runs without a value, are left out; the mean of none is NaN."""
        found = [value for value in values if not math.isnan(value)]
        mean = float(np.mean(found)) if found else math.nan
        return cls(mean, float(np.std(found, ddof=1)) if len(found) > 1 else math.nan, len(found))


@dataclass(frozen=True)
class Curve:
    """One run: its points by samples, each with ``samples``, ``processor_seconds``, ``wall_seconds`` and measures by column."""

    variant: str
    title: str
    seed: int
    finished: bool
    points: tuple[Mapping[str, Any], ...]

    def end(self, column: str) -> float:
        """The value of the last point; NaN where it was not measured."""
        return float(self.points[-1].get(column, math.nan))

    def at(self, column: str, budget: float, by: str = SAMPLES) -> float:
        """A measure at a budget, linear between points over the logarithm of the budget; NaN outside of the curve."""
        found = self._found(column, by)
        if not found or not found[0][0] <= budget <= found[-1][0]:
            return math.nan
        x, y = zip(*found, strict=True)
        return float(np.interp(math.log(budget), np.log(x), y))

    def reach(self, column: str, goal: float, by: str = SAMPLES) -> float:
        """The budget at which a measure first is as good as ``goal``, interpolated as in ``at``.

        Inf where it never is, NaN where it was not measured. Where the first point is as good already, that point's budget: the
        goal was reached by then (``reached_before``).
        """
        found = self._found(column, by)
        sign = -1 if more_is_better(column) else 1
        if not found:
            return math.nan
        if sign * found[0][1] <= sign * goal:
            return found[0][0]
        for (x0, y0), (x1, y1) in pairwise(found):
            if sign * y1 <= sign * goal:
                share = (goal - y0) / (y1 - y0)
                return math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0)))
        return math.inf

    def reached_before(self, column: str, goal: float) -> bool:
        """Whether the first point is as good as ``goal`` already, so that ``reach`` is an upper bound."""
        found = self._found(column, SAMPLES)
        sign = -1 if more_is_better(column) else 1
        return bool(found) and sign * found[0][1] <= sign * goal

    def _found(self, column: str, by: str) -> list[tuple[float, float]]:
        pairs = [(float(point[by]), float(point.get(column, math.nan))) for point in self.points]
        return [(x, y) for x, y in pairs if x > 0 and math.isfinite(y)]


def curves_of(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Rows of a table of results -> the runs, in the order in which their variants first appear, then by seed.

    A run is finished where its last row's step is its ``max_steps``.
    """
    order = list(dict.fromkeys(row["variant"] for row in rows))
    runs: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault((order.index(row["variant"]), row["seed"]), []).append(row)
    curves = []
    for (number, seed), found in sorted(runs.items()):
        points = sorted(found, key=lambda row: row["step"])
        last = points[-1]
        finished = last["step"] >= last["max_steps"]
        curves.append(Curve(order[number], last["title"], seed, finished, tuple(points)))
    return curves
