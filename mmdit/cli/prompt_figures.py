"""``mmdit prompt-figures``: the fusing scale, styles by pictures, and the map of pseudo-words."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.bounds import Batch, InferenceSteps, NonNegativeNumber, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName
from mmdit.errors import UserError
from mmdit.storage.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

    from mmdit.metrics.prompts.figures import ShownPrompt

FUSING, GROUNDS, WORDS = "fusing", "grounds", "pseudo_words"


def prompt_figures(
    data: Path,
    output: Path,
    split: str = "test",
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
    num_prompts: PositiveInt = 64,
    num_rows: PositiveInt = 4,
    fusing_scales: list[float] | None = None,
    categories: list[str] | None = None,
    detector: str | None = None,
    num_inference_steps: InferenceSteps = 25,
    guidance_scale: NonNegativeNumber | None = None,
    seed: Seed = 0,
    batch_size: Batch = 32,
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> None:
    """Draw what the fusing scale does, what is made of styles by pictures, and where the pseudo-words of subjects lie.

    Writes OUTPUT/fusing.csv and fusing.png (how far pictures follow the words and how far the subject's picture, for each scale,
    where the two contradict each other: "a {red torus}" beside the picture of a blue one), fusing_pictures.png (some of
    the pictures), grounds.png (an object in the style of a scene, on a floor and against a wall that a picture shows, where the
    split has them), pseudo_words.csv and pseudo_words.png (t-SNE of the pseudo-words of four categories).

    Args:
        data: Dataset folder whose split has prompts.jsonl with other pictures of subjects (data render --composition subjects).
        output: Folder of the figures; they are replaced.
        split: Split of the dataset.
        model: A bundled model's name, a pipeline folder, or a Hub id; it must take prompts with subjects.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
        num_prompts: Prompts that the numbers are means of.
        num_rows: Prompts that are shown of each kind.
        fusing_scales: By default 0, 0.25, 0.5, 0.75 and 1.
        categories: Of the map; by default the four with the most subjects.
        detector: Folder of the detector that judges; by default the model's own, or a bundled one.
        num_inference_steps: Denoising steps.
        guidance_scale: On the prompt; 1 = no guidance; by default the model's own.
        seed: Of the choice of prompts, of all noise, and of the map.
        batch_size: Prompts at a time; the figures do not depend on it.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; give a dataset, the folder that holds dataset.json")
    from mmdit.cli.common.charts import figure_class, fusing_chart, scatter_chart
    from mmdit.cli.common.judged import judged_split
    from mmdit.cli.common.model import load_pipeline
    from mmdit.cli.common.output import prepare_folder, write_image
    from mmdit.cli.common.pictures import labelled_grid
    from mmdit.metrics.prompts.evaluation import FUSING_SCALES, PromptEvaluation, fuses_subjects, takes_prompts
    from mmdit.metrics.prompts.figures import (
        fusing_pictures,
        ground_pictures,
        map_in_plane,
        neighbours_alike,
        pseudo_words,
    )
    from mmdit.metrics.tasks import TaskRunner

    scales = list(FUSING_SCALES) if fusing_scales is None else fusing_scales
    if not scales or not all(0 <= scale <= 1 for scale in scales):
        raise UserError(f"--fusing_scales are {scales}: give numbers from 0 to 1")
    figure_class()  # found out now, not after the last picture
    prepare_folder(output)
    pipe = load_pipeline(model, device, dtype, lora=lora, lora_scale=lora_scale)
    if not takes_prompts(pipe) or not fuses_subjects(pipe):
        raise UserError(f"--model {model!r} does not fuse text and subjects: give one with conditioner 'tiue'")
    pipe.set_progress_bar_config(disable=True)
    prompted, instrument = judged_split(pipe, data, split, seed, detector)

    words = pseudo_words(pipe, prompted, categories)
    points = map_in_plane(words.vectors, seed)
    rows: list[dict[str, Any]] = [
        {"category": category, "picture": path.name, "x": f"{x:.6g}", "y": f"{y:.6g}"}
        for category, path, (x, y) in zip(words.categories, words.files, points.tolist(), strict=True)
    ]
    _write_table(output / f"{WORDS}.csv", rows)
    alike = neighbours_alike(words.vectors, words.categories)
    title = f"pseudo-words of {len(rows)} subjects: nearest one of the same category {alike:.2f}"
    write_atomically(output / f"{WORDS}.png", scatter_chart(points.tolist(), words.categories, title))
    print(title)

    tasks = TaskRunner(pipe, num_inference_steps, guidance_scale=guidance_scale, seed=seed)
    shown = fusing_pictures(tasks, prompted, scales, num_rows)
    grid = labelled_grid(
        [[row.reference, *row.made] for row in shown],
        [row.words for row in shown],
        ["subject", *(f"{scale:g}" for scale in scales)],
    )
    write_image(output / f"{FUSING}_pictures.png", grid)
    grounds = ground_pictures(tasks, prompted, num_rows)
    written = [f"{FUSING}.csv", f"{FUSING}.png", f"{FUSING}_pictures.png", f"{WORDS}.csv", f"{WORDS}.png"]
    if grounds:
        write_image(output / f"{GROUNDS}.png", _ground_grid(grounds))
        written.append(f"{GROUNDS}.png")
    else:
        (output / f"{GROUNDS}.png").unlink(missing_ok=True)  # of an earlier call on another split
    evaluation = PromptEvaluation(
        tasks, prompted, instrument, count=num_prompts, batch_size=batch_size, fusing_scales=scales
    )
    measured = evaluation.sweep_fusing() or []
    _write_table(output / f"{FUSING}.csv", [_flat(row) for row in measured])
    caption = f"{len(prompted)} samples, {measured[0]['num_samples']} prompts" if measured else ""
    write_atomically(output / f"{FUSING}.png", fusing_chart(measured, caption))
    for name in written:
        print(output / name)


def _ground_grid(grounds: Mapping[str, Sequence[ShownPrompt]]) -> Image.Image:
    """For each kind a row of the pictures that prompts show, above what was made of them and of the words below it."""
    import numpy as np
    from PIL import Image

    from mmdit.cli.common.pictures import labelled_grid
    from mmdit.names import GROUND_LEADS

    pictures, labels, captions = [], [], []
    for name, prompts in grounds.items():
        lead = GROUND_LEADS[name]
        made = [each.made[0] for each in prompts]
        size = (made[0].shape[1], made[0].shape[0])  # a crop is of any
        pictures += [[np.asarray(Image.fromarray(each.reference).resize(size)) for each in prompts], made]
        labels += [f"{{{name}}}", f"{lead} {{{name}}}"]
        captions += [[""] * len(prompts), [each.words.partition(f" {lead}")[0] for each in prompts]]
    return labelled_grid(pictures, labels, [], captions)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in row.items() if name != "standard_error"}
    errors = {f"{name}_error": value for name, value in row["standard_error"].items()}
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in {**values, **errors}.items()}


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())
