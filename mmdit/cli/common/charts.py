"""Charts of measured tables, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmdit.errors import UserError

if TYPE_CHECKING:
    from mmdit.metrics.learning_curves import Curve


def figure_class() -> Any:
    """matplotlib's Figure. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the chart needs matplotlib: pip install 'multimodal-dit[metrics]'") from error
    return Figure


def sweep_chart(rows: Sequence[Mapping[str, Any]], caption: str) -> bytes:
    """Headline measures over the number of steps, a row of panels per task and a line per sampler; PNG bytes.

    Args:
        rows: as ``read_table`` returns them.
        caption: of the whole chart.

    Raises:
        UserError: matplotlib is not installed.
    """
    from mmdit.flow.schedulers import SCHEDULERS
    from mmdit.metrics.sweep import HEADLINES, higher_is_better
    from mmdit.metrics.tasks import TASKS

    panels = {
        task: [name for name in HEADLINES[task] if any(r["task"] == task and name in r for r in rows)] for task in TASKS
    }
    panels = {task: names for task, names in panels.items() if names}
    width = max((len(names) for names in panels.values()), default=1)
    figure = figure_class()(figsize=(4.2 * width, 0.5 + 3.1 * max(1, len(panels))), layout="constrained")
    axes = figure.subplots(max(1, len(panels)), width, squeeze=False)
    steps = sorted({row["num_inference_steps"] for row in rows})
    lines: dict[str, Any] = {}
    for axis in axes.flat:
        axis.set_visible(False)
    for line_of_axes, (task, names) in zip(axes, panels.items(), strict=False):
        for axis, name in zip(line_of_axes, names, strict=False):
            axis.set_visible(True)
            for scheduler, kind in SCHEDULERS.items():
                points = sorted(
                    (row["num_inference_steps"], row[name])
                    for row in rows
                    if row["task"] == task and row["scheduler"] == scheduler and name in row
                )
                if points:
                    x, y = zip(*points, strict=True)
                    (lines[scheduler],) = axis.plot(
                        x, y, color=kind.color, marker=kind.marker, markersize=4, linewidth=1.3
                    )
            axis.set_xscale("log")
            axis.set_xticks(steps, [str(count) for count in steps])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.set_title(f"{task}: {name} ({'higher' if higher_is_better(name) else 'lower'} is better)", fontsize=9)
            axis.set_xlabel("steps", fontsize=8)
            axis.tick_params(labelsize=8)
    figure.suptitle(caption, fontsize=9)
    if lines:
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), fontsize=8)
    return _png(figure)


def fusing_chart(rows: Sequence[Mapping[str, Any]], caption: str) -> bytes:
    """Agreement with words and with the subject's picture over the fusing scale, with standard errors; PNG bytes.

    Args:
        rows: of ``prompts.fusing`` in a report.
        caption: of the whole chart.
    """
    figure = figure_class()(figsize=(8.4, 3.4), layout="constrained")
    shares, distances = figure.subplots(1, 2)
    scales = [row["fusing_scale"] for row in rows]
    for axis, names in ((shares, ("text", "subject")), (distances, ("distance",))):
        for name in names:
            values, errors = (
                [part[name] for part in parts] for parts in (rows, [row["standard_error"] for row in rows])
            )
            axis.errorbar(scales, values, yerr=errors, marker="o", markersize=4, linewidth=1.3, capsize=2, label=name)
        axis.set_xlabel("fusing scale", fontsize=8)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8)
    shares.set_title("share of pictures with the colour of the words, of the picture", fontsize=9)
    distances.set_title("RGB distance to the subject (lower is more alike)", fontsize=9)
    figure.suptitle(caption, fontsize=9)
    return _png(figure)


def scatter_chart(points: Sequence[Sequence[float]], groups: Sequence[str], caption: str) -> bytes:
    """Points in the plane, a colour for each group; PNG bytes."""
    figure = figure_class()(figsize=(5.2, 4.6), layout="constrained")
    axis = figure.subplots()
    for group in dict.fromkeys(groups):
        chosen = [point for point, its_group in zip(points, groups, strict=True) if its_group == group]
        x, y = zip(*chosen, strict=True)
        axis.scatter(x, y, s=16, label=group)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(fontsize=8)
    axis.set_title(caption, fontsize=9)
    return _png(figure)


def learning_curves_chart(
    curves: Sequence[Curve], panels: Sequence[tuple[str, str, str]], units: Mapping[str, str], goal: tuple[str, float]
) -> bytes:
    """Measures over samples or time, a panel for each and a line per variant: the mean of its runs, between least and most.

    Args:
        curves: the runs; a point of a variant is the mean of the runs that have come so far.
        panels: (column, title, "samples" or a column of seconds) each.
        units: of the latter, for the axis.
        goal: a column and the value to reach in it, drawn as a line.

    Returns PNG bytes. Raises UserError: matplotlib is not installed.
    """
    width = min(4, max(1, len(panels)))
    height = -(-max(1, len(panels)) // width)
    figure = figure_class()(figsize=(4.2 * width, 0.8 + 3.1 * height), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False)
    titles = {curve.variant: curve.title for curve in curves}
    colors = {name: f"C{number % 10}" for number, name in enumerate(titles)}
    styles = {name: ("-", "--", ":", "-.")[number // 10 % 4] for number, name in enumerate(titles)}
    lines: dict[str, Any] = {}
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (column, title, by) in zip(axes.flat, panels, strict=False):
        for name in titles:
            steps: dict[int, list[tuple[float, float]]] = {}
            for point in (point for curve in curves if curve.variant == name for point in curve.points):
                if math.isfinite(point.get(column, math.nan)):
                    steps.setdefault(point["step"], []).append((point[by], point[column]))
            if not steps:
                continue
            found = [list(zip(*steps[step], strict=True)) for step in sorted(steps)]
            x, y = ([sum(values[part]) / len(values[part]) for values in found] for part in (0, 1))
            style = {"color": colors[name], "linestyle": styles[name]}
            (lines[name],) = axis.plot(x, y, marker="o", markersize=3, linewidth=1.3, **style)
            low, high = ([extreme(values[1]) for values in found] for extreme in (min, max))
            axis.fill_between(x, low, high, color=colors[name], alpha=0.15, linewidth=0)
        if column == goal[0]:
            axis.axhline(goal[1], color="0.5", linewidth=0.8, linestyle=":")
        axis.set_xscale("log")
        axis.grid(alpha=0.25)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(units[by], fontsize=8)
        axis.tick_params(labelsize=8, which="both")
    if lines:
        labels = [titles[name] for name in lines]
        figure.legend(lines.values(), labels, loc="outside lower center", ncols=min(len(lines), 3), fontsize=8)
    return _png(figure)


def _png(figure: Any) -> bytes:
    """With 256 colours, which lines and letters need at most: a third of the bytes."""
    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
