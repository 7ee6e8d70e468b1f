"""``mmdit compare-lora``: a subject by its picture alone, against a LoRA that is trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmdit.bounds import Batch, InferenceSteps, NonNegativeNumber, PositiveInt, PositiveNumber, Seed, Width
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName
from mmdit.errors import UserError

WORDS, PICTURE, LORA, REAL, COPIED = "words", "picture", "lora", "real_images", "copied_references"
SHOWN = 4  # pictures in a row


def compare_lora(
    data: Path,
    output: Path,
    split: str = "test",
    model: str = BUNDLED_MODEL,
    num_subjects: PositiveInt = 1,
    num_images: PositiveInt = 16,
    max_steps: PositiveInt = 200,
    rank: Width = 16,
    learning_rate: PositiveNumber = 2e-3,
    training_batch_size: Batch = 8,
    detector: str | None = None,
    num_inference_steps: InferenceSteps = 25,
    guidance_scale: NonNegativeNumber | None = None,
    seed: Seed = 0,
    batch_size: Batch = 32,
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> None:
    """Compare a subject's picture with a LoRA that is trained for it.

    A picture needs no preparation. Three ways to the same subject, with the same noise: its words alone ("a red torus"), its
    picture ("a {torus}"), and its words with a LoRA of all but one of its pictures. Beside them real pictures, and the reference
    copied. Writes OUTPUT/report.json (likeness, and the seconds of preparation), OUTPUT/pictures.png, and
    OUTPUT/subject_N/run/lora/ for ``--lora``.

    Args:
        data: Dataset folder whose split shows subjects in several pictures (data render --composition subjects).
        output: Folder of the results; it must be new or empty.
        split: Split of the dataset.
        model: A bundled model's name or a pipeline folder; it must take prompts with subjects.
        num_subjects: Subjects, each with a LoRA of its own.
        num_images: Pictures of each subject in each way.
        max_steps: Training steps of a LoRA.
        rank: Of the LoRA.
        learning_rate: Of the LoRA.
        training_batch_size: Of the LoRA.
        detector: Folder of the detector that judges; by default the model's own, or a bundled one.
        num_inference_steps: Denoising steps.
        guidance_scale: On the prompt; 1 = no guidance; by default the model's own.
        seed: Of the choice of subjects, of training and of all noise.
        batch_size: Pictures at a time; the results do not depend on it.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; give a dataset, the folder that holds dataset.json")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: is there already; give a new folder")
    from mmdit.cli.common.judged import judged_split
    from mmdit.cli.common.model import load_pipeline
    from mmdit.cli.common.output import prepare_folder, write_image
    from mmdit.cli.common.pictures import labelled_grid
    from mmdit.metrics.prompts.evaluation import takes_prompts
    from mmdit.metrics.prompts.known_subjects import SubjectScores, known_subjects
    from mmdit.metrics.prompts.scores import ScoreTable
    from mmdit.metrics.tasks import PROMPTS, TaskRunner
    from mmdit.modalities import IMAGE
    from mmdit.models.adapters import require_peft
    from mmdit.storage.json_object import write_json
    from mmdit.storage.versions import versions
    from mmdit.training.recipes.data import pretrained_folder
    from mmdit.training.subject_lora import Preparation, prepare_subject

    require_peft()
    pretrained_folder(model)  # LoRA starts from a folder: found out now, not after the first pictures
    pipe = load_pipeline(model, device, dtype)
    if not takes_prompts(pipe) or pipe.image_encoder is None:
        raise UserError(f"--model {model!r} takes no subjects by their pictures: give one with an image encoder")
    pipe.set_progress_bar_config(disable=True)
    tasks = TaskRunner(pipe, num_inference_steps, guidance_scale=guidance_scale, seed=seed)
    prompted, instrument = judged_split(pipe, data, split, seed, detector)
    samples = prompted.samples
    subjects = known_subjects(prompted, num_subjects)
    prepare_folder(output)

    preparation = Preparation(max_steps, rank, training_batch_size, learning_rate, seed)
    tables = {way: ScoreTable(SubjectScores.metrics) for way in (WORDS, PICTURE, LORA, REAL, COPIED)}
    seconds: list[float] = []
    rows, labels = [], []
    for number, subject in enumerate(subjects):
        scores = SubjectScores(subject, prompted, instrument)
        make = partial(_make, tasks, noise=f"compare_lora.{number}", count=num_images, batch_size=batch_size)
        made = {WORDS: make(subject.words), PICTURE: make(subject.template, subject=subject.reference)}
        ids = [samples.samples[index].id for index in subject.samples[:-1]]
        prepared = prepare_subject(pipe, model, samples.info, split, ids, output / f"subject_{number}", preparation)
        seconds.append(prepared.seconds)
        pipe.load_lora_weights(prepared.folder)
        made[LORA] = make(subject.words)
        pipe.unload_lora_weights()
        reference = scores.known[-1]
        true = samples[subject.samples[-1]].maps[IMAGE]
        for way, pictures in {**made, REAL: [true], COPIED: [reference]}.items():
            scores.add(tables[way], pictures)
        rows += [[reference if way == WORDS else None, *made[way][:SHOWN]] for way in (WORDS, PICTURE, LORA)]
        labels += [subject.words, f"{subject.template} by its picture", f"LoRA, {prepared.seconds:.0f} s"]

    report: dict[str, Any] = {way: {"seconds": 0.0, **table.compute()} for way, table in tables.items()}
    report[LORA]["seconds"] = sum(seconds) / len(seconds)
    report["settings"] = {
        "model": model,
        "split": split,
        "subjects": [subject.words for subject in subjects],
        "num_pictures": [len(subject.samples) - 1 for subject in subjects],
        "num_images": num_images,
        "max_steps": max_steps,
        "rank": rank,
        "learning_rate": learning_rate,
        "training_batch_size": training_batch_size,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": tasks.guidance[PROMPTS][0],
        "internal_guidance_scale": tasks.guidance[PROMPTS][1],
        "seed": seed,
        "detector": instrument.name,
        "device": str(pipe.device),
        "versions": versions(),
    }
    write_json(output / "report.json", report)
    write_image(output / "pictures.png", labelled_grid(rows, labels, ["subject", *[""] * SHOWN]))
    _print_table(report)
    print(output / "report.json")
    print(output / "pictures.png")


def _make(
    tasks: Any, prompt: str, *, noise: str, count: int, batch_size: int, subject: Path | None = None
) -> list[Any]:
    """Pictures of one prompt, uint8 (H, W, 3), each with noise of its own."""
    from PIL import Image

    from mmdit.metrics.maps import batched
    from mmdit.modalities import IMAGE
    from mmdit.modalities.rgb import read_picture

    picture = None if subject is None else Image.fromarray(read_picture(subject))
    made: list[Any] = []
    for indices in batched(range(count), batch_size):
        subjects = None if picture is None else [[picture]] * len(indices)
        maps = tasks.prompt([prompt] * len(indices), indices, noise=noise, subjects=subjects)
        made += [each[IMAGE] for each in maps]
    return made


def _print_table(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "seconds before", "category", "colour", "RGB distance", "to the nearest known picture")
    for way in (WORDS, PICTURE, LORA, REAL, COPIED):
        row = report[way]
        values = (f"{row[name]:.2f}" for name in ("category", "colour", "distance", "nearest"))
        table.add_row(way, f"{row['seconds']:.0f}", *values)
    Console(width=100).print(table)
