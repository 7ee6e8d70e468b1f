"""The part of ``report.json`` that is about prompts."""

from __future__ import annotations

from typing import Any

from mmdit.errors import UserError
from mmdit.metrics.prompts.cases import PromptedSplit
from mmdit.metrics.prompts.evaluation import PromptEvaluation, takes_prompts
from mmdit.metrics.prompts.instrument import find_instrument
from mmdit.metrics.prompts.networks import ImageTextNetwork
from mmdit.metrics.samples import EvaluationSamples
from mmdit.metrics.tasks import PROMPTS, TaskRunner


def add_prompts(
    report: dict[str, Any],
    tasks: TaskRunner,
    samples: EvaluationSamples,
    split: str,
    *,
    count: int | None,
    batch_size: int,
    detector: str | None,
    clip: str | None,
    progress: bool,
) -> None:
    """Measure prompts and add "prompts" and its controls to a report; say in its notes what could not be measured.

    A model that takes no prompts, or a split without captions, leaves the report as it is.

    Args:
        report: of ``Evaluation.compute``.
        tasks: runs the model.
        samples: the whole split.
        split: its name.
        count: prompts of each kind at most; None = all that the split has.
        batch_size: prompts at a time.
        detector: folder of the instrument; None = see ``find_instrument``.
        clip: folder or Hub id; None = the similarities are not measured.
        progress: show bars.

    Raises:
        UserError: captions that are wrong, a detector or CLIP that can't be loaded, or one named for nothing.
    """
    prompted = PromptedSplit(samples, split)
    if not takes_prompts(tasks.pipe) or not prompted:
        for option, value in (("detector", detector), ("clip", clip)):
            if value is not None:
                what = f"the split {split!r} has no prompts.jsonl" if not prompted else "the model takes no prompts"
                raise UserError(f"{option} is {value!r}, but {what}: leave it out")
        return
    notes = report["settings"]["notes"]
    instrument = find_instrument(tasks.pipe, prompted.categories, detector)
    if instrument is None:
        notes.append("prompts are not measured: no detector knows the dataset's categories; name one with detector")
        return
    network = None if clip is None else ImageTextNetwork(clip)
    if network is None:
        notes.append("image_similarity and text_similarity are not measured: no CLIP model; name one with clip")
    evaluation = PromptEvaluation(
        tasks,
        prompted,
        instrument,
        count=len(samples) if count is None else count,
        batch_size=batch_size,
        clip=network,
        progress=progress,
    )
    report["prompts"], controls = evaluation.run()
    report["controls"] |= controls
    notes += evaluation.notes
    report["settings"] |= {"num_prompts": count, "detector": instrument.name, "clip": clip}
    scale, internal = tasks.guidance[PROMPTS]
    report["settings"] |= {"prompt_guidance_scale": scale, "prompt_internal_guidance_scale": internal}
    report["settings"]["prompt_num_inference_steps"] = tasks.steps[PROMPTS]
    report["timing"]["seconds_per_image"] |= {task: mean.compute() for task, mean in tasks.seconds.items()}
