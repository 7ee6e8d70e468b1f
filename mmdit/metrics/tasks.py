"""The three tasks on samples of a dataset: understand, condition, generate. Every report runs them through here.

Understanding is given RGB and nothing else: a label would tell it the class. Conditioning is given one modality and no
label. Generation is given the labels of the samples, so that its class balance is that of the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import pooled
from mmdit.errors import UserError, unknown_name
from mmdit.metrics.arrays import RunningMean
from mmdit.metrics.maps import others, sample_generators, unstack
from mmdit.metrics.samples import GroundTruth
from mmdit.modalities import IMAGE
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

TASKS = ("understanding", "conditioning", "generation")
PROMPTS = "prompts"
Maps = dict[str, np.ndarray]
# (what the noise is for, indices of the samples) -> a generator for each
Noise = Callable[[str, Sequence[int]], list[torch.Generator]]


def chosen_tasks(names: Sequence[str] | None) -> tuple[str, ...]:
    """Those of ``TASKS``, None = all. Raises UserError for an unknown one, or none."""
    if names is None:
        return TASKS
    for name in names:
        if name not in TASKS:
            raise unknown_name("task", name, TASKS)
    if not names:
        raise UserError(f"no task is given: give at least one of {', '.join(TASKS)}")
    return tuple(names)


class TaskRunner:
    """Runs one model's tasks on batches of samples.

    Args:
        pipe: the model, with its scheduler.
        steps: denoising steps, one number for all tasks, or of each by name; those that aren't named are the model's own.
        guidance_scale: on the class, in generation, and on the prompt; None = the model's own, on prompts that on prompts.
        internal_guidance_scale: of all tasks but understanding; None = the model's own, or off where the other is named.
        seed: each sample draws its own noise from it, whatever the batch size.
        noise: another source of noise than ``sample_generators`` with the seed.

    ``steps`` has those of each task and of prompts, ``guidance`` (guidance, internal guidance) of ``TASKS`` and of prompts,
    ``seconds`` the mean wall-clock time per sample of each task, and of prompts where there were any.
    """

    def __init__(
        self,
        pipe: MultimodalDiTPipeline,
        steps: Mapping[str, int] | int | None = None,
        *,
        guidance_scale: float | None = None,
        internal_guidance_scale: float | None = None,
        seed: int = 0,
        noise: Noise | None = None,
    ) -> None:
        self.pipe = pipe
        self.steps = {task: pipe.default_steps(understanding=task == "understanding") for task in TASKS}
        self.steps[PROMPTS] = pipe.default_steps(prompt=True)
        self.steps |= dict.fromkeys(self.steps, steps) if isinstance(steps, int) else steps or {}
        generation, prompts = (
            pipe.defaults.guided(guidance_scale, internal_guidance_scale, prompt=prompt) for prompt in (False, True)
        )
        self.guidance = {"conditioning": (1.0, generation[1]), "generation": generation, PROMPTS: prompts}
        self.guidance["understanding"] = (1.0, 1.0)
        self.noise: Noise = noise or (lambda task, indices: sample_generators(seed, task, indices))
        self.seconds = {task: RunningMean() for task in TASKS}

    def understand(
        self, images: Sequence[Any], indices: Sequence[int], noise: str = "understanding", **options: Any
    ) -> list[Maps]:
        """RGB images, uint8 (H, W, 3) or PIL -> one dict of the other maps for each."""
        output = self._run(
            "understanding",
            len(images),
            conditions={IMAGE: list(images)},
            generator=self.noise(noise, indices),
            **options,
        )
        return unstack(output, others(self.pipe.codecs), len(images))

    def condition(self, name: str, samples: Sequence[GroundTruth], noise: str | None = None) -> list[Maps]:
        """One true map -> all modalities, the given one included, for each sample."""
        output = self._run(
            "conditioning",
            len(samples),
            conditions={name: [self.pipe.codecs[name].as_given(sample.maps[name]) for sample in samples]},
            generator=self.noise(noise or name, [sample.index for sample in samples]),
        )
        return unstack(output, self.pipe.codecs, len(samples))

    def generate(self, labels: Sequence[int | str | None], indices: Sequence[int]) -> list[Maps]:
        """Class labels, None = none -> all modalities for each."""
        output = self._run(
            "generation",
            len(labels),
            class_labels=list(labels),
            generator=self.noise("generation", indices),
        )
        return unstack(output, self.pipe.codecs, len(labels))

    def prompt(
        self,
        prompts: Sequence[str],
        indices: Sequence[int],
        *,
        noise: str = PROMPTS,
        subjects: Sequence[Sequence[Any]] | None = None,
        conditions: Mapping[str, Any] | None = None,
        fusing_scale: float | None = None,
    ) -> list[Maps]:
        """Prompts -> all modalities for each.

        Args:
            prompts: templates, with braces where there are subjects.
            indices: of the prompts, for the noise.
            noise: what it is for.
            subjects: the pictures of each prompt, in the order of its braces.
            conditions: modality -> a map for each prompt.
            fusing_scale: None = the model's own.
        """
        given = {"subjects": subjects and [list(each) for each in subjects], "conditions": conditions}
        options = {"fusing_scale": fusing_scale, **given}
        output = self._run(
            PROMPTS,
            len(prompts),
            prompt=list(prompts),
            generator=self.noise(noise, indices),
            **{name: value for name, value in options.items() if value is not None},
        )
        return unstack(output, self.pipe.codecs, len(prompts))

    def _run(self, task: str, count: int, **arguments: Any) -> Any:
        start = time.perf_counter()
        scale, internal = self.guidance[task]
        output = self.pipe(
            num_inference_steps=self.steps[task],
            guidance_scale=scale,
            internal_guidance_scale=internal,
            output_type="np",
            **arguments,
        )
        if self.pipe.execution_device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.setdefault(task, RunningMean()).update(np.full(count, (time.perf_counter() - start) / count))
        return output


def can_condition(pipe: MultimodalDiTPipeline, name: str, sample: GroundTruth) -> bool:
    """Whether a sample has a map that a condition can be made of."""
    return name in sample.maps and pipe.codecs[name].has_values(sample.maps[name])


def class_labels(
    pipe: MultimodalDiTPipeline, samples: Sequence[GroundTruth], categories: Sequence[str]
) -> list[int | str | None]:
    """What the model calls each sample's category, None = it has no such class.

    A model without names has those of the data, ``categories``, where it has classes for all of them.
    """
    if pipe.id2label:
        return [sample.category if sample.category in pipe.labels else None for sample in samples]
    fits = len(categories) <= pipe.transformer.config.num_classes
    index = {name: number for number, name in enumerate(categories)} if fits else {}
    return [index.get(sample.category) if sample.category is not None else None for sample in samples]


@torch.no_grad()
def reconstruct(pipe: MultimodalDiTPipeline, images: Mapping[str, Tensor]) -> Maps:
    """Encode and decode with the VAE alone: what no diffusion at all leaves of the data.

    Args:
        images: modality -> encoded images (B, 3, H, W) in [-1, 1].

    Returns modality -> raw values as the pipeline returns them: rgb uint8 (B, H, W, 3), depth (B, H, W) relative, ...
    """
    codec = LatentCodec(pipe.vae, pipe.modalities, device=pipe.execution_device)
    reconstructed = {}
    for name, batch in images.items():
        latents = codec.latents(codec.moments(batch).float(), name)
        reconstructed[name] = pipe.codecs[name].decode(codec.decode(latents, name))
    return reconstructed


@torch.no_grad()
def pooled_features(network: Any, images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """One feature vector per uint8 image (H, W, 3), float32 (B, D), ``mmdit.encoders.features.pooled``."""
    return pooled(network, to_tensor(images).to(device)).float()


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 images (H, W, 3) -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
