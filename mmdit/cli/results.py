"""``python -m mmdit.cli.results``: the results in the README and in the bundled model's card, from the model's reports.

A test holds that both say what the reports say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
REPORT = PACKAGE / "assets" / "scenes64" / "report.json"
README = PACKAGE.parent / "README.md"
CARD = PACKAGE / "assets" / "scenes64" / "README.md"

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


PROMPTS = PACKAGE / "assets" / "scenes64" / "prompts.json"
# Of a model with the other conditioner, which is not bundled; fewer prompts of the same scenes.
INTERLEAVED = PACKAGE / "assets" / "scenes64" / "prompts_interleaved.json"

# what is asked, measure, where it is in the report and its controls
PROMPT_ROWS: tuple[tuple[str, str, str], ...] = (
    ("one object", "category", "text.one.category"),
    ("", "colour", "text.one.colour"),
    ("two objects", "both present", "text.two.present"),
    ("", "their colours", "text.two.colour"),
    ("", "their relation", "text.two.relation"),
    ("", "all right", "text.two.all"),
    ("an object on a floor of a colour", "colour of the floor", "text.floor.ground"),
    ("an object before a wall of a colour", "colour of the wall", "text.wall.ground"),
    ("a subject, by its picture alone", "category", "subject.category"),
    ("", "distance of colours", "subject.distance"),
    ("a subject, named too", "category", "subject_named.category"),
    ("", "distance of colours", "subject_named.distance"),
    ("its picture brought to 16 pixels", "category", "subject_small.category"),
    ("", "distance of colours", "subject_small.distance"),
    ("a rare subject", "category", "subject_rare.category"),
    ("", "distance of colours", "subject_rare.distance"),
    ("a subject in words, without its picture", "category", "subject_described.category"),
    ("", "distance of colours", "subject_described.distance"),
    ("a subject, and how it stands to an object in words", "both present", "subject_beside_words.present"),
    ("", "all right", "subject_beside_words.all"),
    ("a subject in another colour by the words before it", "that colour", "subject_recoloured.text"),
    ("", "its own colour", "subject_recoloured.subject"),
    ("two subjects by pictures", "all right", "subjects.two.all"),
    ("", "one missing, or in the other's colour", "subjects.two.fused"),
    ("an object in the style of a scene", "category", "style.scene.category"),
    ("", "distance of floor and wall", "style.scene.distance"),
    ("an object on a floor by its picture", "distance of the floor", "style.floor.distance"),
    ("an object before a wall by its picture", "distance of the wall", "style.wall.distance"),
    ("a colour beside depth", "colour", "geometry.colour"),
    ("", "object IoU", "geometry.object_iou"),
)


# Of mmdit ablate, configs/ablations/prompts_scenes64.yaml.
ABLATION = PACKAGE / "assets" / "scenes64" / "ablation_prompts.csv"
# configs/ablations/scenes64.yaml.
RECIPE_ABLATION = PACKAGE / "assets" / "scenes64" / "ablation.csv"

# Of mmdit compare-lora.
LORA = PACKAGE / "assets" / "scenes64" / "compare_lora.json"

# each row, and its part of that report
LORA_ROWS: tuple[tuple[str, str], ...] = (
    ("its words alone", "words"),
    ("its picture", "picture"),
    ("a LoRA and its words", "lora"),
    ("real pictures", "real_images"),
    ("the reference, copied", "copied_references"),
)

# head of the column, where it is in a way, format
LORA_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("seconds before", "seconds", "{:.0f}"),
    ("category", "category", "{:.2f}"),
    ("colour", "colour", "{:.2f}"),
    ("distance of colours", "distance", "{:.2f}"),
    ("to the nearest known picture", "nearest", "{:.2f}"),
)

VIDEO = PACKAGE / "assets" / "scenes64" / "video.json"

# each row, and the method of the report
VIDEO_ROWS: tuple[tuple[str, str], ...] = (
    ("noise of its own for each frame", "independent"),
    ("one noise for all", "shared"),
    ("and averaged over time", "temporal"),
    ("the truth", "truth"),
)
# head of the column, where it is in a method, format
VIDEO_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("depth: flicker", "depth.flicker", "{:.2f}"),
    ("points", "depth.warped_change", "{:.2f}"),
    ("AbsRel", "depth.abs_rel", "{:.4f}"),
    ("normals: flicker", "normal.flicker", "{:.2f}°"),
    ("points", "normal.warped_change", "{:.2f}°"),
    ("mean angle", "normal.mean_angle", "{:.2f}°"),
    ("labels: flicker", "segmentation.flicker", "{:.2f}%"),
    ("mIoU", "segmentation.miou", "{:.3f}"),
)

# Of mmdit diversity.
DIVERSITY = PACKAGE / "assets" / "scenes64" / "diversity.json"

# each row, and its part of that report
DIVERSITY_ROWS: tuple[tuple[str, str], ...] = (
    ("made for it", "images"),
    ("against another map", "controls.other_map"),
    ("true, each of its own map", "controls.real_images"),
)
# head of the column, where it is in a part, format
DIVERSITY_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("distance of two, RGB", "distance", "{:.2f}"),
    ("of their features", "feature_distance", "{:.2f}"),
    ("AbsRel of the depth in them", "abs_rel", "{:.3f}"),
)

# Of many samples: mmdit evaluate --tasks '[generation]'; as the model does by itself, and with internal guidance.
GENERATION = PACKAGE / "assets" / "scenes64" / "generation.json"
# The same with classifier-free guidance in place of the model's own.
GENERATION_GUIDANCE = PACKAGE / "assets" / "scenes64" / "generation_guidance.json"

# each row, and its part of that report
GENERATION_ROWS: tuple[tuple[str, str], ...] = (
    ("generated from the categories", "generation"),
    ("with classifier-free guidance", "guided.generation"),
    ("as many other real images", "controls.other_samples"),
    ("the real ones through the VAE", "controls.vae_only"),
)
# head of the column, where it is in a part, format
GENERATION_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("Fréchet distance", "frechet_distance", "{:.1f}"),
    ("category, by a classifier", "classifier_accuracy", "{:.3f}"),
    ("depth against normals", "consistency.depth_normal_angle", "{:.1f}°"),
    ("seconds an image", "seconds", "{:.2f}"),
)


_ABSENT = object()


def _find(report: dict[str, Any], path: str) -> Any:
    value: Any = report
    for key in path.split("."):
        value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


def _text(report: dict[str, Any], path: str | None, form: str) -> str:
    value = _find(report, path) if path else _ABSENT
    return form.format(value) if isinstance(value, int | float) else "–"


def results_table(report: dict[str, Any]) -> str:
    """Markdown: one line per measure, with the wrong-image control of the same run beside it; absent values are "–"."""
    settings = report["settings"]
    lines = ["| task | measure | scenes64 | another image given |", "|---|---|---|---|"]
    for task, measure, path, control, form in ROWS:
        wrong = _text(report, f"controls.shuffled_understanding.{control}" if control else None, form)
        lines.append(f"| {task} | {measure} | {_text(report, path, form)} | {wrong} |")
    steps = settings.get("num_inference_steps")
    steps = ", ".join(f"{task} {n}" for task, n in steps.items()) if isinstance(steps, dict) else steps
    lines += ["", f"{settings['num_samples']} scenes of the split `{settings['split']}`; denoising steps: {steps}."]
    return "\n".join(lines)


def prompts_table(report: dict[str, Any], beside: Mapping[str, dict[str, Any]] | None = None) -> str:
    """Markdown: what prompts ask for, beside the same measures with another sample's prompt and on real pictures.

    Kinds that no report has have no row. ``beside``: head -> the report of another model; where it alone has a kind, the
    controls are its own.
    """
    beside = beside or {}
    heads = ["asked for", "measure", "scenes64", *beside, "another prompt", "real pictures"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for asked, measure, path in PROMPT_ROWS:
        having = [each for each in (report, *beside.values()) if _find(each["prompts"], path) is not _ABSENT]
        if not having:
            continue
        values = [_text(each, f"prompts.{path}", "{:.2f}") for each in (report, *beside.values())]
        values += [
            _text(having[0], f"controls.{part}.{path}", "{:.2f}") for part in ("shuffled_prompts", "real_images")
        ]
        lines.append(f"| {asked} | {measure} | {' | '.join(values)} |")
    settings, count = report["settings"], _count(report)
    steps = settings.get("prompt_num_inference_steps", _generation_steps(settings))
    scale = settings.get("prompt_guidance_scale", settings["guidance_scale"])
    asked = f"{count} prompts of each kind where the split has as many, of unseen scenes and subjects"
    fewer = "".join(f" {name}: {_count(other)} prompts." for name, other in beside.items() if _count(other) != count)
    lines += ["", f"{asked}; {steps} steps, guidance {scale:g}.{fewer}"]
    return "\n".join(lines)


def _count(report: dict[str, Any]) -> int:
    """Prompts of each kind."""
    return int(report["prompts"]["text"]["one"]["num_samples"])


def _table(
    head: str,
    rows: Sequence[tuple[str, str]],
    columns: Sequence[tuple[str, str, str]],
    report: dict[str, Any],
    below: str,
) -> str:
    """Markdown: a line for each row's part of a report, a column for each measure of it, and a sentence below."""
    heads = [head, *(name for name, _, _ in columns)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for text, part in rows:
        values = (_text(report, f"{part}.{path}", form) for _, path, form in columns)
        lines.append(f"| {text} | {' | '.join(values)} |")
    return "\n".join([*lines, "", below])


def lora_table(report: dict[str, Any]) -> str:
    """Markdown: a subject in its words, by its picture, and by a LoRA that was trained for it."""
    settings = report["settings"]
    below = (
        f"{len(settings['subjects'])} unseen subjects, {settings['num_images']} pictures of each in each way; a LoRA of rank "
        f"{settings['rank']} is trained for {settings['max_steps']} steps on {settings['num_pictures'][0]} pictures."
    )
    return _table("a subject by", LORA_ROWS, LORA_COLUMNS, report, below)


def video_table(report: dict[str, Any]) -> str:
    """Markdown: flicker beside accuracy, one line per method, and the truth's own."""
    settings = report["settings"]
    below = (
        f"{settings['num_scenes']} camera paths of {settings['num_frames']} frames through unseen scenes; "
        f"{settings['num_inference_steps']} step; depth in hundredths of its range."
    )
    return _table("frames", VIDEO_ROWS, VIDEO_COLUMNS, report["video"], below)


def diversity_table(report: dict[str, Any]) -> str:
    """Markdown: how images for one map differ, and keep to it."""
    settings = report["settings"]
    below = (
        f"{settings['num_images']} images for each of {settings['num_maps']} unseen maps; "
        f"{settings['num_inference_steps']} steps."
    )
    return _table(f"RGB for one {settings['condition']} map", DIVERSITY_ROWS, DIVERSITY_COLUMNS, report, below)


def generation_table(report: dict[str, Any], guided: dict[str, Any]) -> str:
    """Markdown: generated images beside as many real ones, which are the floor of a distance of so few.

    Args:
        report: of the model as it is by itself.
        guided: with classifier-free guidance.
    """
    both = [
        {"generation": {**each["generation"], "seconds": each["timing"]["seconds_per_image"]["generation"]}}
        for each in (report, guided)
    ]
    settings = [each["settings"] for each in (report, guided)]
    below = f"{settings[0]['num_samples']:,} unseen scenes; {sampler_of(settings[0])}, and {sampler_of(settings[1])}; one core."
    return _table("images", GENERATION_ROWS, GENERATION_COLUMNS, {**report, **both[0], "guided": both[1]}, below)


def _generation_steps(settings: dict[str, Any]) -> int:
    """One number where the caller gave one, else what generation took."""
    steps = settings["num_inference_steps"]
    return int(steps["generation"] if isinstance(steps, dict) else steps)


def sampler_of(settings: dict[str, Any]) -> str:
    """Steps and guidance of generation, by the settings of a report."""
    scale, internal = settings["guidance_scale"], settings.get("internal_guidance_scale", 1)
    parts = [f"{_generation_steps(settings)} steps of {'one evaluation' if scale == 1 else 'two evaluations'}"]
    parts += [] if scale == 1 else [f"guidance {scale:g}"]
    parts += [] if internal == 1 else [f"internal guidance {internal:g}"]
    return ", ".join(parts)


def _numbers(report: Any, path: str = "") -> Iterator[tuple[str, float, float | None]]:
    """Yield what a part of a report measures: its path, the value, and the standard error where there is one."""
    errors = report.get("standard_error", {})
    for key, value in report.items():
        if isinstance(value, dict) and key != "standard_error":
            yield from _numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float):
            yield path + key, value, errors.get(key)


def metrics_table(report: dict[str, Any], *parts: str, errors: bool = False) -> str:
    """Markdown: every number of the ``parts`` of a report, with standard errors where asked."""
    lines = ["| metric | value | standard error |", "|---|---|---|"] if errors else ["| metric | value |", "|---|---|"]
    for part in parts:
        value = _find(report, part)
        for path, number, error in () if value is _ABSENT else _numbers(value, f"{part}."):
            cells = [str(number) if isinstance(number, int) else f"{number:.4f}"]
            cells += ["" if error is None else f"{error:.4f}"] if errors else []
            lines.append(f"| {path} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fusing_table(report: dict[str, Any]) -> str:
    """Markdown: the sweep of α."""
    lines = ["| α | agrees with the text | with the picture | distance to the picture |", "|---|---|---|---|"]
    for row in report["prompts"]["fusing"]:
        text, subject = (f"{row[key]:.2f} ± {row['standard_error'][key]:.2f}" for key in ("text", "subject"))
        lines.append(f"| {row['fusing_scale']:g} | {text} | {subject} | {row['distance']:.2f} |")
    return "\n".join(lines)


PROMPT_CONTROLS = (
    "controls.shuffled_prompts",
    "controls.real_images",
    "controls.real_images_through_vae",
    "controls.copied_references",
    "controls.other_subjects",
)
OTHER_PARTS = (
    "understanding",
    "conditioning",
    "generation",
    "controls.shuffled_understanding",
    "controls.shuffled_consistency",
    "controls.vae_only",
    "controls.ground_truth",
    "timing",
)


def put(text: str, name: str, table: str) -> str:
    """Return the text with the table between the marks of a name."""
    begin, end = f"<!-- {name}: python -m mmdit.cli.results -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def ablation_table(path: Path) -> str:
    """Markdown: what the runs of a table of ``mmdit ablate`` have reached."""
    from mmdit.cli.common.ablation_report import end_table
    from mmdit.cli.common.ablation_results import read_rows
    from mmdit.metrics.learning_curves import PROCESSOR_SECONDS, curves_of

    return end_table([curve for curve in curves_of(read_rows(path)) if curve.finished], PROCESSOR_SECONDS)


def read(path: Path) -> dict[str, Any]:
    """A report that is committed."""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


# marks in the README -> the table between them
TABLES: dict[str, Callable[[], str]] = {
    "results": lambda: results_table(read(REPORT)),
    "generation": lambda: generation_table(read(GENERATION), read(GENERATION_GUIDANCE)),
    "prompts": lambda: prompts_table(read(PROMPTS), {"interleaved": read(INTERLEAVED)}),
    "lora": lambda: lora_table(read(LORA)),
    "diversity": lambda: diversity_table(read(DIVERSITY)),
    "ablation": lambda: ablation_table(ABLATION),
    "video": lambda: video_table(read(VIDEO)),
}

# marks in the card -> every number of the reports
CARD_TABLES: dict[str, Callable[[], str]] = {
    "prompts": lambda: metrics_table(read(PROMPTS), "prompts", *PROMPT_CONTROLS, errors=True),
    "fusing": lambda: fusing_table(read(PROMPTS)),
    "recipe": lambda: ablation_table(RECIPE_ABLATION),
    "metrics": lambda: metrics_table(read(REPORT), *OTHER_PARTS),
    "generation": lambda: metrics_table(read(GENERATION), "generation", "controls.other_samples"),
}


def update(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return the text with each table between its marks."""
    for name, table in tables.items():
        text = put(text, name, table())
    return text


if __name__ == "__main__":
    for path, tables in ((README, TABLES), (CARD, CARD_TABLES)):
        path.write_text(update(path.read_text(encoding="utf-8"), tables), encoding="utf-8")
        print(path)
