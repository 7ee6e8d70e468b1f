"""``mmdit ablation-figures``: the table and the picture of measured learning curves, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmdit.bounds import PositiveNumber
from mmdit.cli.common.ablation_results import read_rows
from mmdit.errors import UserError
from mmdit.storage.files import write_atomically

REPORT, CHART = "ablation.md", "ablation.png"
Time = Literal["processor_seconds", "wall_seconds"]


def ablation_figures(
    results: list[str],
    output: Path,
    goal: PositiveNumber = 0.03,
    time: Time = "processor_seconds",
) -> None:
    """Draw the table and the picture of ablations from their CSV files.

    Writes OUTPUT/ablation.md (mean and spread over seeds: at the end, after equal samples and after equal time, and what it
    takes to reach an AbsRel) and OUTPUT/ablation.png (learning curves). Trains and measures nothing.

    Args:
        results: Files that mmdit ablate wrote, ablation.csv; several are read as one.
        output: Folder of the figures; they are replaced.
        goal: AbsRel whose cost is shown.
        time: What time is counted in: processor_seconds, or wall_seconds where a GPU trained.
    """
    from mmdit.cli.common.charts import figure_class
    from mmdit.cli.common.output import prepare_folder

    figure_class()
    paths = [Path(path) for path in results]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file; give the ablation.csv of 'mmdit ablate'")
    rows = read_all(paths)
    prepare_folder(output)
    for path in draw(paths, output, goal, time, rows):
        print(path)


def read_all(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of all files. Raises UserError for a point that two of them have."""
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[str, int], Path] = {}
    for path in paths:
        found = read_rows(path)
        for key in dict.fromkeys((row["variant"], row["seed"]) for row in found):
            if key in seen:
                raise UserError(f"{path}: {key[0]!r} with seed {key[1]} is in {seen[key]} too: give one of them")
            seen[key] = path
        rows += found
    return rows


def draw(
    paths: Sequence[Path],
    output: Path,
    goal: float = 0.03,
    time: str = "processor_seconds",
    rows: list[dict[str, Any]] | None = None,
) -> tuple[Path, Path]:
    """Write the Markdown and the picture of tables; returns their paths. ``rows``: what the tables hold, None = read here."""
    from mmdit.cli.common.ablation_report import FRECHET, GOAL, MEASURES, UNITS, ablation_report
    from mmdit.cli.common.charts import learning_curves_chart
    from mmdit.metrics.learning_curves import SAMPLES, curves_of

    curves = curves_of(read_all(paths) if rows is None else rows)
    there = [each for each in MEASURES if any(each.name in point for curve in curves for point in curve.points)]
    panels = [(each.name, each.head, SAMPLES) for each in there]
    panels += [(each.name, each.head, time) for each in there if each in (GOAL, FRECHET)]
    write_atomically(output / REPORT, ablation_report(curves, goal, time).encode())
    write_atomically(output / CHART, learning_curves_chart(curves, panels, UNITS, (GOAL.name, goal)))
    return output / REPORT, output / CHART
