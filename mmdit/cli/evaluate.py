"""``mmdit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdit.bounds import Batch, InferenceSteps, NonNegativeInt, NonNegativeNumber, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName
from mmdit.errors import UserError


def evaluate(
    data: Path,
    output: Path,
    split: str = "test",
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
    num_samples: PositiveInt | None = 128,
    num_inference_steps: InferenceSteps | None = None,
    guidance_scale: NonNegativeNumber | None = None,
    internal_guidance_scale: NonNegativeNumber | None = None,
    seed: Seed = 0,
    batch_size: Batch = 32,
    teacher: str | None = None,
    num_prompts: NonNegativeInt | None = None,
    detector: str | None = None,
    clip: str | None = None,
    tasks: list[str] | None = None,
    device: str = "auto",
    dtype: DtypeName = "auto",
    allow_outside: bool = False,
) -> None:
    """Measure a model on a dataset and write every metric as JSON.

    Understanding (RGB to the rest, without a label), conditioning (each modality to the rest), generation (from the samples'
    categories), the agreement between modalities, and controls: the same numbers with the wrong input, and with no
    diffusion at all. Where the split has captions (prompts.jsonl) and the model takes prompts: text, subjects by their
    pictures (also small, rare, or in words instead), floors, walls and styles by pictures, prompts beside depth, the fusing
    scale; judged by a detector, whose numbers on real pictures stand beside them.
    What can't be measured is null.

    Args:
        data: Dataset folder, the one that holds dataset.json.
        output: The report, a JSON file; it is replaced.
        split: Split of the dataset.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
        num_samples: Samples drawn from the split with the seed; null = all.
        num_inference_steps: Denoising steps of every task; by default 1 for understanding and the model's own for the others.
        guidance_scale: On the category or the prompt, in generation; 1 = no guidance; by default the model's own.
        internal_guidance_scale: How far from what the model's middle block predicts, in all but understanding, where it has a
            head there; 1 = off; by default the model's own, or off where guidance_scale is given.
        seed: Of the choice of samples and of all noise.
        batch_size: Samples at a time; the report does not depend on it.
        teacher: Feature network for the Fréchet distance: a folder or a timm model; by default the model's own, if it has one.
        num_prompts: Prompts of each kind; by default as num_samples; 0 = none.
        detector: Folder of the detector that judges prompts; by default the model's own, or a bundled one.
        clip: CLIP model for the similarity of subjects, a folder or a Hub id; by default it is not measured.
        tasks: Some of understanding, conditioning and generation; by default all.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
        allow_outside: Accept a manifest that names files outside the dataset's folder.
    """
    if output.is_dir():
        raise UserError(f"{output}: is a folder; --output is the report's file, such as {output / 'report.json'}")
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; give a dataset, the folder that holds dataset.json")
    from mmdit.cli.common.output import prepare_file
    from mmdit.storage.json_object import write_json
    from mmdit.storage.versions import versions

    prepare_file(output)
    from mmdit.cli.common.model import load_pipeline, lora_settings
    from mmdit.metrics.report import evaluate as measure

    pipe = load_pipeline(model, device, dtype, lora=lora, lora_scale=lora_scale)
    report = measure(
        pipe,
        data,
        split=split,
        num_samples=num_samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        internal_guidance_scale=internal_guidance_scale,
        seed=seed,
        batch_size=batch_size,
        teacher=teacher,
        num_prompts=num_prompts,
        detector=detector,
        clip=clip,
        tasks=tasks,
        allow_outside=allow_outside,
    )
    report["settings"] |= {
        "model": model,
        **lora_settings(lora, lora_scale),
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }
    report["settings"]["versions"] = versions()
    write_json(output, report)
    _print_report(report)
    print(output)


def _print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mmdit.storage.json_object import flatten

    table = Table("metric", "value")
    for key, value in flatten(
        {key: value for key, value in report.items() if key not in ("settings", "timing")}
    ).items():
        if isinstance(value, float) and ".standard_error." not in key:
            table.add_row(key, f"{value:.4g}")
    Console(width=100).print(table)
