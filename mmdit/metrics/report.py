"""Every metric of a pipeline on a dataset: ``report.json`` of ``mmdit evaluate``.

Understanding is given RGB and nothing else: a label would tell it the class. Conditioning is given one modality and no
label. Generation is given the labels of the samples, so that its class balance is that of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmdit.errors import UserError
from mmdit.metrics.evaluation import Evaluation, FeatureNetwork
from mmdit.metrics.feature_networks import find_teacher
from mmdit.metrics.maps import batched
from mmdit.metrics.prompts.report import add_prompts
from mmdit.metrics.samples import EvaluationSamples
from mmdit.metrics.tasks import chosen_tasks
from mmdit.pipelines.defaults import check_internal
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.json_object import json_safe

_MAX_DEPTH_UNITS = 65535  # of a 16-bit depth image


def evaluate(
    pipe: MultimodalDiTPipeline | str | Path,
    data: str | Path,
    *,
    split: str = "test",
    num_samples: int | None = 128,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    internal_guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    teacher: FeatureNetwork | str | None = None,
    num_prompts: int | None = None,
    detector: str | None = None,
    clip: str | None = None,
    tasks: Sequence[str] | None = None,
    progress: bool = True,
    allow_outside: bool = False,
) -> dict[str, Any]:
    """Measure a pipeline on a dataset and return the report, ready for JSON: what could not be measured is None.

    Args:
        pipe: a pipeline, a bundled name, or a folder.
        data, split: a dataset folder and a split of it.
        num_samples: drawn from the split with ``seed``; None = all. Generation makes as many.
        num_inference_steps: for all tasks; None = 1 for understanding, the model's own for the others.
        guidance_scale: on the class, in generation, and on prompts; None = the model's own.
        internal_guidance_scale: of all tasks but understanding; None = the model's own, or off where ``guidance_scale`` is given.
        seed: of the samples' choice and of all noise. The report is a function of it, whatever the batch size.
        batch_size: samples at a time.
        device, dtype: None = as the pipeline is; a pipeline loaded here goes to the CPU in float32.
        teacher: feature network for the Fréchet distance and ``classifier_accuracy``: an object, a folder, or the name
            of a timm model; None = the folder ``teacher`` of the model, if there is one.
        num_prompts: of each kind, where the split has captions and the model takes prompts; None = ``num_samples``, 0 = none.
        detector: the instrument that judges prompts, a folder; None = see ``find_instrument``.
        clip: CLIP model for the similarities of subjects, a folder or Hub id; None = they are not measured.
        tasks: some of understanding, conditioning and generation; None = all. What belongs to the others is None.
        progress: show a bar.
        allow_outside: accept a manifest that names files outside the dataset.

    Raises:
        UserError: a model, dataset, split or number that can't be used.
    """
    for name, value in (("batch_size", batch_size), ("num_inference_steps", num_inference_steps)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: give a whole number, at least 1")
    wanted = chosen_tasks(tasks)
    if not isinstance(pipe, MultimodalDiTPipeline):
        pipe = MultimodalDiTPipeline.from_pretrained(str(pipe))
    if device is not None or dtype is not None:
        pipe.to(*(value for value in (device, dtype) if value is not None))
    if internal_guidance_scale is not None:
        check_internal(internal_guidance_scale, pipe.transformer)
    network = find_teacher(pipe, teacher) if teacher is None or isinstance(teacher, str) else teacher
    samples = EvaluationSamples(
        data, split, pipe.modalities, pipe.native_shape, num_samples=num_samples, seed=seed, allow_outside=allow_outside
    )
    evaluation = Evaluation(
        pipe,
        samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        internal_guidance_scale=internal_guidance_scale,
        seed=seed,
        network=network,
        span=depth_range(samples.info.depth_scale),
        tasks=wanted,
    )
    quiet = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    try:
        with tqdm(total=len(samples), desc=f"evaluate {split}", unit="sample", disable=not progress) as bar:
            for batch in batched(samples, batch_size):
                evaluation.update(batch)
                bar.update(len(batch))
        if network is not None and "generation" in wanted:
            for batch in batched(samples.others(), batch_size):
                evaluation.compare(batch)
        report = evaluation.compute()
        if num_prompts != 0:
            everything = EvaluationSamples(
                data, split, pipe.modalities, pipe.native_shape, seed=seed, allow_outside=allow_outside
            )
            add_prompts(
                report,
                evaluation.tasks,
                everything,
                split,
                count=num_samples if num_prompts is None else num_prompts,
                batch_size=batch_size,
                detector=detector,
                clip=clip,
                progress=progress,
            )
    finally:
        pipe.set_progress_bar_config(**quiet)
    report["settings"] |= {
        "model": str(pipe.name_or_path or ""),
        "data": str(data),
        "split": split,
        "batch_size": batch_size,
        "teacher": _teacher_name(network),
    }
    return json_safe(report)


def depth_range(depth_scale: float) -> tuple[float, float]:
    """What 16-bit depth images of a dataset can hold, metres: the range that aligned depth is clamped to."""
    return depth_scale, depth_scale * _MAX_DEPTH_UNITS


def _teacher_name(network: Any) -> str | None:
    return None if network is None else str(getattr(network, "name", type(network).__name__))
