"""What an ablation shows, as Markdown: mean and spread over seeds at equal samples and equal time, and the samples to a goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmdit.metrics.learning_curves import SAMPLES, Curve, Spread


@dataclass(frozen=True)
class Measure:
    """A column of the tables.

    Args:
        name: in the CSV.
        head: what people read.
        form: of a value; a deviation has it too.
    """

    name: str
    head: str
    form: str


GOAL = Measure("understanding_depth_abs_rel", "AbsRel", "{:.4f}")
FRECHET = Measure("generation_frechet_distance", "Fréchet distance", "{:.1f}")
# What the tables and the picture show, in order.
MEASURES = (
    GOAL,
    Measure("understanding_normal_mean_angle_objects", "object normals", "{:.1f}°"),
    Measure("understanding_segmentation_object_iou", "object IoU", "{:.3f}"),
    Measure("conditioning_depth_abs_rel", "depth → RGB → depth", "{:.4f}"),
    FRECHET,
    Measure("generation_category_accuracy", "category", "{:.2f}"),
    Measure("prompts.text.one.category", "one object", "{:.2f}"),
    Measure("prompts.text.one.colour", "its colour", "{:.2f}"),
    Measure("prompts.text.two.present", "two objects present", "{:.2f}"),
    Measure("prompts.text.two.all", "all of them right", "{:.2f}"),
    Measure("prompts.subject.category", "subject's category", "{:.2f}"),
    Measure("prompts.subject.distance", "its distance", "{:.3f}"),
    Measure("prompts.subject.copy_rate", "copied", "{:.2f}"),
    Measure("prompts.subjects.two.present", "two subjects present", "{:.2f}"),
    Measure("prompts.subjects.two.all", "all of it right", "{:.2f}"),
)
UNITS = {SAMPLES: "samples", "processor_seconds": "processor seconds", "wall_seconds": "seconds"}
MISSING = "–"


def ablation_report(curves: Sequence[Curve], goal: float, time: str) -> str:
    """Markdown of all finished runs; those that are not are named.

    Args:
        curves: all runs, in the order of the lines.
        goal: AbsRel whose cost is shown.
        time: the column that time is counted in, "processor_seconds" or "wall_seconds".
    """
    finished = [curve for curve in curves if curve.finished]
    open_runs = [f"{curve.variant} (seed {curve.seed})" for curve in curves if not curve.finished]
    note = f"Not finished, and left out: {', '.join(open_runs)}." if open_runs else ""
    if not finished:
        return f"No run is finished yet. {note}\n"
    fewest = min(curve.points[-1][SAMPLES] for curve in finished)
    least = min(curve.points[-1][time] for curve in finished)
    parts = [
        "At the end of each run; mean ± deviation over seeds:",
        end_table(finished, time),
        f"What the runs have learned after {_count(fewest)} samples:",
        _table(finished, time, lambda curve, column: curve.at(column, fewest)),
        f"What they have learned after {_count(least)} {UNITS[time]}:",
        _table(finished, time, lambda curve, column: curve.at(column, least, time)),
        *(
            [f"What it takes to {GOAL.head} {goal:g}:", _goal_table(finished, goal, time)]
            if any(GOAL.name in point for curve in finished for point in curve.points)
            else []
        ),
        "Values between two points of a learning curve are interpolated over the logarithm. Before the end of a run its learning "
        "rate has not decayed, so only what stands at a run's end is what that recipe reaches in so many samples.",
    ]
    return "\n\n".join([*parts, *filter(None, [note])]) + "\n"


def end_table(curves: Sequence[Curve], time: str) -> str:
    """What finished runs have reached at their ends."""
    return _table(curves, time, lambda curve, column: curve.end(column))


def _table(curves: Sequence[Curve], time: str, value: Callable[[Curve, str], float]) -> str:
    """One line per variant that has a value."""
    shown = [measure for measure in MEASURES if any(measure.name in point for c in curves for point in c.points)]
    lines = [
        f"| variant | seeds | samples in all | {UNITS[time]} in all | {' | '.join(measure.head for measure in shown)} |",
        "|---" * (len(shown) + 4) + "|",
    ]
    for runs in _by_variant(curves):
        samples = Spread.of([curve.points[-1][SAMPLES] for curve in runs])
        seconds = Spread.of([curve.points[-1][time] for curve in runs])
        cells = [
            _spread(Spread.of([value(curve, measure.name) for curve in runs]), measure.form, len(runs))
            for measure in shown
        ]
        if set(cells) == {MISSING}:
            continue
        head = [runs[0].title, str(len(runs)), _count(samples.mean), _count(seconds.mean)]
        lines.append(f"| {' | '.join([*head, *cells])} |")
    return "\n".join(lines)


def _goal_table(curves: Sequence[Curve], goal: float, time: str) -> str:
    lines = [f"| variant | samples | {UNITS[time]} |", "|---|---|---|"]
    for runs in _by_variant(curves):
        cells = []
        for by in (SAMPLES, time):
            reached = [curve.reach(GOAL.name, goal, by) for curve in runs]
            found = [value for value in reached if math.isfinite(value)]
            if all(map(math.isnan, reached)):
                cells.append(MISSING)
            elif len(found) < len(runs):
                cells.append(f"not reached by {len(runs) - len(found)} of {len(runs)}")
            else:
                bound = "≤ " if any(curve.reached_before(GOAL.name, goal) for curve in runs) else ""
                spread = Spread.of(found)
                deviation = "" if math.isnan(spread.deviation) else f" ± {_count(spread.deviation)}"
                cells.append(f"{bound}{_count(spread.mean)}{deviation}")
        lines.append(f"| {' | '.join([runs[0].title, *cells])} |")
    return "\n".join(lines)


def _by_variant(curves: Sequence[Curve]) -> list[list[Curve]]:
    found: dict[str, list[Curve]] = {}
    for curve in curves:
        found.setdefault(curve.variant, []).append(curve)
    return list(found.values())


def _spread(spread: Spread, form: str, num_runs: int) -> str:
    if spread.count == 0:
        return MISSING
    deviation = "" if math.isnan(spread.deviation) else f" ± {form.format(spread.deviation)}"
    missing = f" ({spread.count} of {num_runs})" if spread.count < num_runs else ""
    return f"{form.format(spread.mean)}{deviation}{missing}"


def _count(value: float) -> str:
    return f"{value:,.0f}"
