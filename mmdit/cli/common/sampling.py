"""Between the commands and the pipeline: one run of one model, from requests to samples on disk.

Every sample has its own generator of noise, so it does not depend on the others of the run.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdit.cli.common.model import DtypeName, load_pipeline, lora_settings, note
from mmdit.cli.common.output import Sample, SampleWriter, prepare_folder
from mmdit.cli.common.prompts import TypedPrompt, prompt_names
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.modalities.exr import need_exr
from mmdit.modalities.resizing import antialiased
from mmdit.pipelines.defaults import check_internal
from mmdit.pipelines.labels import resolve_labels
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.progress import Progress
from mmdit.storage.digests import digest_file
from mmdit.storage.names import number_repeats, safe_name

Arrays = dict[str, np.ndarray]
Outputs = tuple[Arrays, Arrays]  # of one sample: raw arrays, and where an ensemble disagrees
Request = dict[str, Any]
UNCONDITIONAL = "unconditional"


class NumberedRequests(Mapping[str, Request]):
    """Requests of samples NAME_SEED for ranges of seeds, each made on demand: a million take no memory.

    Args:
        ranges: (name without the seed, its seeds), in the order of the samples; a name may come again with other seeds.
        make: (name without the seed, seed) -> request.
    """

    def __init__(self, ranges: Sequence[tuple[str, range]], make: Callable[[str, int], Request]) -> None:
        self.ranges, self.make = list(ranges), make
        self._seeds: dict[str, list[range]] = {}
        for stem, seeds in self.ranges:
            self._seeds.setdefault(stem, []).append(seeds)

    def split(self, name: str) -> tuple[str, int]:
        """The name without the seed, and the seed. Raises KeyError for a name of no request."""
        stem, _, digits = name.rpartition("_")
        if not (digits.isascii() and digits.isdecimal()) or str(int(digits)) != digits:
            raise KeyError(name)
        if not any(int(digits) in seeds for seeds in self._seeds.get(stem, ())):
            raise KeyError(name)
        return stem, int(digits)

    def __getitem__(self, name: str) -> Request:
        return self.make(*self.split(name))

    def __iter__(self) -> Iterator[str]:
        return (f"{stem}_{seed}" for stem, seeds in self.ranges for seed in seeds)

    def __len__(self) -> int:
        return sum(len(seeds) for _, seeds in self.ranges)


def resolve_category(pipe: MultimodalDiTPipeline, category: str) -> tuple[int, str]:
    """Name or id as text -> (id, name). Raises UserError with the nearest names for an unknown one."""
    is_id = category.isascii() and category.isdecimal() and category not in pipe.labels
    given: int | str = int(category) if is_id else category
    label = resolve_labels(given, pipe.transformer.config.num_classes, pipe.id2label)[0]
    assert label is not None
    return label, pipe.id2label.get(label, str(label))


def category_names(pipe: MultimodalDiTPipeline) -> list[str]:
    """A file name for each class id, no two alike.

    Names that become the same file name ("C" and "C#"), or are equal (ImageNet's two cranes), have the class id after them.
    """
    names = [safe_name(pipe.id2label.get(index, str(index))) for index in range(pipe.transformer.config.num_classes)]
    counts = Counter(name.casefold() for name in names)  # some file systems ignore case
    told = [f"{name}_{index}" if counts[name.casefold()] > 1 else name for index, name in enumerate(names)]
    return number_repeats(told)


@dataclass(frozen=True)
class Asked:
    """What samples of one name are of.

    Args:
        name: of their folders, without the seed.
        label, category: class id and name, None = none.
        prompt: None = none.
        words: what their requests say of the prompt.
    """

    name: str
    label: int | None = None
    category: str | None = None
    prompt: TypedPrompt | None = None
    words: Mapping[str, Any] = field(default_factory=dict)


def asked_for(pipe: MultimodalDiTPipeline, categories: Sequence[str], prompts: Sequence[TypedPrompt]) -> list[Asked]:
    """Pair categories and prompts: one of either counts for all of the other. With neither: unconditional samples.

    Raises:
        UserError: an unknown category, or different numbers of both.
    """
    if len(categories) > 1 and len(prompts) > 1 and len(categories) != len(prompts):
        raise UserError(
            f"{len(categories)} categories and {len(prompts)} prompts: give as many of each, or one for all of the other"
        )
    count = max(1, len(categories), len(prompts))
    stems = category_names(pipe)
    found: list[tuple[int, str] | None] = [resolve_category(pipe, category) for category in categories] or [None]
    typed: list[TypedPrompt | None] = [*prompts] or [None]
    words = {prompt: prompt.request() for prompt in prompts}
    names = dict(zip(prompts, prompt_names(prompts), strict=True))
    asked = []
    for pair, prompt in zip(found * (count // len(found)), typed * (count // len(typed)), strict=True):
        parts = [] if pair is None else [stems[pair[0]]]
        parts += [] if prompt is None else [names[prompt]]
        label, category = pair or (None, None)
        made = {} if prompt is None else words[prompt]
        asked.append(Asked("_".join(parts) or UNCONDITIONAL, label, category, prompt, made))
    return asked


def run_pipeline(
    pipe: MultimodalDiTPipeline, seeds: Sequence[int], num_inference_steps: int, guidance_scale: float, **inputs: Any
) -> list[Outputs]:
    """Run one batch, each sample with its own seed; returns raw arrays per modality for each sample, and its uncertainty.

    rgb (H, W, 3) uint8, depth (H, W) float32 in [0, 1], normal (H, W, 3) float32, segmentation (H, W) int64.
    """
    output: Any = pipe(
        **inputs,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    )
    spread = output.uncertainty or {}
    return [
        (
            {name: np.asarray(output[name][index]) for name in pipe.modalities},
            {name: spread[name][index] for name in spread},
        )
        for index in range(len(seeds))
    ]


class SamplingRun:
    """A loaded model, a folder for its samples, and the settings they share; values and folder are checked before loading.

    Steps and guidance that are None are the model's own; ``understanding``: RGB is given, and neither category nor prompt;
    ``prompted``: a prompt is given; ``asks``: it or a category is.

    Raises:
        UserError: a setting out of range, a model or device that can't be used, a folder that can't be written.
    """

    def __init__(
        self,
        command: str,
        model: str,
        *,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        internal_guidance_scale: float | None = None,
        understanding: bool = False,
        prompted: bool = False,
        asks: bool = True,
        scheduler: str | None,
        device: str,
        dtype: DtypeName,
        output: Path,
        overwrite: bool,
        batch_size: int = 8,
        lora: str | None = None,
        lora_scale: float = 1.0,
        exr: bool = False,
    ) -> None:
        self.batch_size = batch_size
        if exr:
            need_exr("--exr")
        prepare_folder(output)
        self.command, self.model = command, model
        self.pipe = load_pipeline(model, device, dtype, scheduler, lora=lora, lora_scale=lora_scale)
        self.lora = {"lora": None, **lora_settings(lora, lora_scale)}
        defaults = self.pipe.defaults
        steps = self.pipe.default_steps(understanding=understanding, prompt=prompted)
        self.num_inference_steps = steps if num_inference_steps is None else num_inference_steps
        scale, internal = defaults.guided(
            guidance_scale, internal_guidance_scale, prompt=prompted, understanding=understanding
        )
        self.guidance_scale = scale if asks else 1.0
        check_internal(internal, self.pipe.transformer, "--internal_guidance_scale")
        self.internal: dict[str, Any] = {}  # in requests only where it is on or asked for: those of before had none
        if internal != 1 or internal_guidance_scale is not None:
            interval = list(defaults.internal_guidance_interval)
            self.internal = {"internal_guidance_scale": internal, "internal_guidance_interval": interval}
        hidden = self.num_inference_steps == 1 or not sys.stderr.isatty()  # in a log the batches are progress enough
        self.pipe.set_progress_bar_config(disable=hidden, leave=False)
        self.native = self.pipe.native_shape
        self.notes: list[str] = []  # for ``say_notes``
        self.writer = SampleWriter(output, self.pipe.modalities, overwrite, exr)
        if exr and not self.writer.exr_names:
            names = ", ".join(self.pipe.modalities)
            raise UserError(f"--exr: --model {model!r} makes {names}, and no map of numbers: leave it out")

    def check(self, requests: Mapping[str, Request], num_pixels: int | None = None) -> None:
        """Check that samples can be written, see ``run``, which does too. Raises UserError."""
        self.writer.check(requests, num_pixels or len(requests) * self.native[0] * self.native[1])

    def say_notes(self) -> None:
        """Print what is to be noted of the input: once nothing of it is refused any more, so that an error stands alone."""
        for text in self.notes:
            note(text)
        self.notes.clear()

    def to_native(self, pixels: np.ndarray) -> Image.Image:
        """A picture (H, W, 3) uint8 at the model's size."""
        return Image.fromarray(pixels).resize(self.native[::-1], Image.Resampling.LANCZOS)

    def at_size_of(self, picture: np.ndarray, arrays: Arrays) -> Arrays:
        """Raw arrays at the size of the picture (H, W, 3) that they are of, which itself takes the place of RGB."""
        return {
            name: picture if name == IMAGE else self.pipe.codecs[name].resize_output(array, *picture.shape[:2])
            for name, array in arrays.items()
        }

    def request(
        self,
        seed: int,
        category: str | None = None,
        class_id: int | None = None,
        conditions: Mapping[str, Path] | None = None,
    ) -> Request:
        """All that decides a sample, as JSON values for its metadata; given files by path and content."""
        return {
            "command": self.command,
            "model": self.model,
            **self.lora,
            "seed": seed,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            **self.internal,
            "scheduler": type(self.pipe.scheduler).__name__,
            "category": category,
            "class_id": class_id,
            "conditions": {
                name: {"path": str(path), "sha256": digest_file(path)} for name, path in (conditions or {}).items()
            },
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
            "device": str(self.pipe.device),
        }

    def run(
        self,
        requests: Mapping[str, Request],
        inputs: Callable[[Sequence[str]], dict[str, Any]],
        finish: Callable[[str, Arrays], Arrays] = lambda name, arrays: arrays,
        num_pixels: int | None = None,
    ) -> None:
        """Make the samples, by name, and print the folder of each.

        Args:
            requests: name -> request.
            inputs: names of a batch -> the pipeline's ``class_labels`` and ``conditions`` for it.
            finish: last change of a sample's arrays before they are written.
            num_pixels: of all samples together; None = each has the model's size.

        Raises:
            UserError: a sample can't be written, which is found out before the first is computed where it can be.
        """
        self.check(requests, num_pixels)
        self.say_notes()
        names = iter(requests)
        with Progress(len(requests), self.command, "image", enabled=len(requests) > self.batch_size) as progress:
            while batch := list(islice(names, self.batch_size)):
                made = {name: requests[name] for name in batch}
                seeds = [request["seed"] for request in made.values()]
                outputs = run_pipeline(
                    self.pipe, seeds, self.num_inference_steps, self.guidance_scale, **self.internal, **inputs(batch)
                )
                for (name, request), (arrays, spread) in zip(made.items(), outputs, strict=True):
                    finished = finish(name, arrays)
                    size = next(iter(finished.values())).shape[:2]
                    uncertainty = {key: antialiased(value, *size) for key, value in spread.items()}
                    print(self.writer.write(Sample(name, finished, request, uncertainty)), flush=True)
                    progress.update()
