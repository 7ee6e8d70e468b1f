"""``python -m mmdit.cli.results``: the README's results, from the bundled model's ``report.json``.

A test holds that the README says what the report says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
REPORT = PACKAGE / "assets" / "scenes64" / "report.json"
README = PACKAGE.parent / "README.md"
BEGIN, END = "<!-- results: python -m mmdit.cli.results -->", "<!-- end of results -->"

# task, measure, where it is in the report, where the wrong-image control is, format
ROWS: tuple[tuple[str, str, str, str | None, str], ...] = (
    ("RGB → depth", "AbsRel", "understanding.depth.abs_rel", "depth.abs_rel", "{:.3f}"),
    ("", "δ < 1.05", "understanding.depth.delta1_05", "depth.delta1_05", "{:.3f}"),
    ("RGB → normals", "mean angle", "understanding.normal.mean_angle", "normal.mean_angle", "{:.1f}°"),
    ("", "on objects", "understanding.normal.mean_angle_objects", "normal.mean_angle_objects", "{:.1f}°"),
    ("RGB → segmentation", "mIoU", "understanding.segmentation.miou", "segmentation.miou", "{:.3f}"),
    ("", "object IoU", "understanding.segmentation.object_iou", "segmentation.object_iou", "{:.3f}"),
    (
        "",
        "main object named",
        "understanding.segmentation.main_object_accuracy",
        "segmentation.main_object_accuracy",
        "{:.2f}",
    ),
    ("depth → RGB", "AbsRel of that RGB's depth", "conditioning.depth.abs_rel", None, "{:.3f}"),
    ("category → all", "segmentation shows the category", "generation.category_accuracy", None, "{:.2f}"),
    ("", "depth against normals", "generation.consistency.depth_normal_angle", None, "{:.1f}°"),
)


def results_table(report: dict[str, Any]) -> str:
    """Markdown: one line per measure, with the wrong-image control of the same run beside it; absent values are "–"."""

    def text(path: str | None, form: str) -> str:
        value: Any = report
        for key in path.split(".") if path else ():
            value = value.get(key) if isinstance(value, dict) else None
        return form.format(value) if isinstance(value, int | float) else "–"

    settings = report["settings"]
    lines = ["| task | measure | scenes64 | another image given |", "|---|---|---|---|"]
    for task, measure, path, control, form in ROWS:
        wrong = text(f"controls.shuffled_understanding.{control}" if control else None, form)
        lines.append(f"| {task} | {measure} | {text(path, form)} | {wrong} |")
    steps = settings.get("num_inference_steps")
    steps = ", ".join(f"{task} {n}" for task, n in steps.items()) if isinstance(steps, dict) else steps
    lines += ["", f"{settings['num_samples']} scenes of the split `{settings['split']}`; denoising steps: {steps}."]
    return "\n".join(lines)


def update(readme: str, report: dict[str, Any]) -> str:
    """Return the README's text with the table of a report between its marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{results_table(report)}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    README.write_text(update(README.read_text(encoding="utf-8"), report), encoding="utf-8")
    print(README)
