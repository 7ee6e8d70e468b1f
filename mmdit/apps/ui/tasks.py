"""What visitors ask the model for: five tasks, each from plain values to previews and a stored result."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmdit.apps.ui.limits import MAX_SEED, Limits
from mmdit.apps.ui.results import ResultStore
from mmdit.apps.ui.sampling import Finished, Preview, Sampler
from mmdit.apps.ui.uploads import Drawing, has_picture, read_edit, read_given, read_image, read_subject
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.pipelines.labels import resolve_labels
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.prompt import tags


@dataclass(frozen=True)
class Settings:
    """What all tasks share; steps and guidance that are None are the model's own.

    Sample i of a request has the seed ``seed`` + i.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    num_images: int = 1

    @classmethod
    def read(
        cls,
        limits: Limits,
        steps: float | None = None,
        guidance_scale: float | None = None,
        seed: float | None = None,
        num_images: float = 1,
    ) -> Settings:
        """Read the page's values; no steps or guidance, or 0, are the model's own, and no seed is a new one. Raises UserError."""
        count = limits.check_count("the number of images", num_images, limits.images)
        if seed is None:
            seed = secrets.randbelow(2**31)
        return cls(
            limits.check_count("steps", steps, limits.steps) if steps else None,
            guidance_scale or None,
            limits.check_count("seed", seed, MAX_SEED - limits.images, least=0),
            count,
        )


@dataclass(frozen=True)
class Words:
    """Category and prompt of a request.

    Args:
        category: a key of ``Tasks.categories``; "" = none.
        prompt: a text with braces; "" = none.
        negative_prompt: what guidance leads away from; "" = nothing.
        pictures: of subjects, for the braces in their order, each as an editor has it, the subject painted over or nothing;
            None, or an editor without a picture = none in this place.
        fusing_scale: how much of the prompt comes from the pictures; None = the pipeline's own.
    """

    category: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    pictures: Sequence[Drawing | None] = ()
    fusing_scale: float | None = None


@dataclass(frozen=True)
class Done:
    """A stored result.

    Args:
        name: in the store.
        samples: raw arrays by modality, each.
        seeds: of the samples.
        summary: what was made, one line.
        notes: what was guessed about the input.
    """

    name: str
    samples: list[dict[str, np.ndarray]]
    seeds: list[int]
    summary: str
    notes: list[str] = field(default_factory=list)


class Tasks:
    """The tasks of one model.

    Args:
        pipe: the model; model: its name, for the page and the records.
        store: of results.
        limits: of requests.
        interval: least time in seconds between previews.
    """

    def __init__(
        self,
        pipe: MultimodalDiTPipeline,
        store: ResultStore,
        limits: Limits | None = None,
        *,
        model: str = "",
        interval: float = 0.5,
    ) -> None:
        self.pipe, self.store, self.limits, self.model = pipe, store, limits or Limits(), model
        self.sampler = Sampler(pipe, interval)
        self.categories = _categories(pipe)

    @property
    def takes_prompts(self) -> bool:
        """Whether the model reads prompts; else it has categories at most."""
        return self.pipe.prompt_encoder() is not None

    @property
    def fuses_subjects(self) -> bool:
        """Whether subjects' pictures can be weighed against the words."""
        return bool(self.pipe.transformer.conditioner.fuses_subjects)

    def generate(self, settings: Settings, words: Words) -> Iterator[Preview | Done]:
        """Category or prompt -> all modalities. Raises UserError."""
        yield from self._run(
            "generate", settings, self._words(words), {"category": words.category, "prompt": words.prompt}
        )

    def understand(self, settings: Settings, image: str | None, match_input: bool) -> Iterator[Preview | Done]:
        """A picture -> the other modalities, at the picture's size with ``match_input``. Raises UserError."""
        if image is None:
            raise UserError("there is no picture: upload one, or take an example")
        picture = read_image(image, self.limits)
        arguments = {"conditions": {IMAGE: picture}, "match_input_resolution": match_input}
        yield from self._run("understand", settings, arguments, {"input_size": picture.size[::-1]})

    def condition(
        self,
        settings: Settings,
        words: Words,
        files: Mapping[str, str | None],
        drawings: Mapping[str, Drawing | None],
        depth_values: str = "auto",
    ) -> Iterator[Preview | Done]:
        """Any subset of the modalities, by file or drawing -> the rest. Raises UserError."""
        given = read_given(
            self.pipe.codecs,
            files,
            drawings,
            native=self.pipe.native_shape,
            limits=self.limits,
            options={"depth_values": depth_values},
        )
        notes = [reading.note for reading in given.values() if reading.note]
        arguments = {"conditions": given, **self._words(words)}
        record = {"given": list(given), "category": words.category, "prompt": words.prompt}
        yield from self._run("condition", settings, arguments, record, notes)

    def translate(
        self,
        settings: Settings,
        words: Words,
        image: str | None,
        keep: Sequence[str],
        *,
        strength: float = 1.0,
        match_input: bool = False,
    ) -> Iterator[Preview | Done]:
        """A picture -> a new one with what is kept of it, modalities that are estimated first. Raises UserError.

        ``strength``: how far it may go from the picture; ``match_input``: at the picture's size, else at the model's.
        """
        if image is None:
            raise UserError("there is no picture to translate: upload one, or take an example")
        kept = [name for name in self.pipe.codecs if name in keep]
        if not kept and strength == 1:
            raise UserError(
                "nothing of the picture is used: choose what is kept of it, or let the new one go less far from it"
            )
        picture = read_image(image, self.limits)
        arguments = {"conditions": {IMAGE: picture}, "keep": kept, **self._words(words)}
        arguments |= {"strength": strength, "match_input_resolution": match_input}
        record = {"category": words.category, "prompt": words.prompt, "keep": kept, "strength": strength}
        yield from self._run("translate", settings, arguments, record)

    def edit(
        self,
        settings: Settings,
        words: Words,
        drawing: Drawing | None,
        *,
        strength: float = 1.0,
        match_input: bool = False,
    ) -> Iterator[Preview | Done]:
        """A picture with a part painted over -> that part anew, in all modalities. Raises UserError.

        ``strength``: how far it may go from the picture; ``match_input``: at the picture's size, else at the model's.
        """
        picture, inside = read_edit(drawing, self.limits)
        arguments = {"conditions": {IMAGE: picture}, "mask": inside, **self._words(words)}
        arguments |= {"strength": strength, "match_input_resolution": match_input}
        record = {"category": words.category, "prompt": words.prompt, "strength": strength}
        yield from self._run("edit", settings, arguments, record)

    def _words(self, words: Words) -> dict[str, Any]:
        """Arguments of a call."""
        arguments: dict[str, Any] = {}
        if words.category:
            if words.category not in self.categories:  # in the pipeline's words
                resolve_labels(words.category, self.pipe.transformer.config.num_classes, self.pipe.id2label)
            arguments["class_labels"] = self.categories.get(words.category, words.category)
        prompt = self.limits.check_text("the prompt", words.prompt)
        negative = self.limits.check_text("the negative prompt", words.negative_prompt)
        if negative:
            arguments["negative_prompt"] = negative
        given = [drawing for drawing in words.pictures if drawing is not None and has_picture(drawing)]
        if not prompt:
            if given:
                raise UserError(
                    "a subject's picture is given without a prompt: write one that marks it, such as a {torus}, or clear it"
                )
            return arguments
        arguments["prompt"] = prompt
        braces = tags(prompt)
        if len(given) != len(braces):
            raise UserError(
                f"pairs of braces in the prompt: {len(braces)}; pictures for them: {len(given)}; give one for each, in order"
            )
        if given:
            arguments["subjects"] = [read_subject(drawing, self.limits) for drawing in given]
            arguments["fusing_scale"] = words.fusing_scale if self.fuses_subjects else None
        return arguments

    def _run(
        self,
        task: str,
        settings: Settings,
        arguments: dict[str, Any],
        record: Mapping[str, Any],
        notes: Sequence[str] = (),
    ) -> Iterator[Preview | Done]:
        seeds = [settings.seed + index for index in range(settings.num_images)]
        calls = self.sampler.run(
            **arguments,
            num_images=settings.num_images,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            seed=seeds,
        )
        for event in calls:
            if isinstance(event, Preview):
                yield event
            else:
                scale, internal = event.guidance
                guidance = {"guidance_scale": scale}
                if internal != 1:
                    guidance["internal_guidance_scale"] = internal
                yield self._done(task, seeds, event, {**guidance, **record}, list(notes))

    def _done(
        self,
        task: str,
        seeds: list[int],
        finished: Finished,
        record: Mapping[str, Any],
        notes: list[str],
    ) -> Done:
        names = list(self.pipe.modalities)
        samples = [{name: np.asarray(finished.output[name][i]) for name in names} for i in range(len(seeds))]
        shared = {"task": task, "model": self.model, "num_inference_steps": finished.num_steps, **record}
        stored = self.store.write(samples, [{**shared, "seed": seed} for seed in seeds])
        listed = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        steps = "1 step" if finished.num_steps == 1 else f"{finished.num_steps} steps"
        summary = f"Seed {listed}, {steps}, {finished.seconds:.1f} s"
        return Done(stored, samples, seeds, summary, notes)


def _categories(pipe: MultimodalDiTPipeline) -> dict[str, int]:
    """A choice for each class -> its id; of equal names each has its id after it."""
    count = pipe.transformer.config.num_classes
    names = {index: pipe.id2label.get(index, f"class {index}") for index in range(count)}
    repeated = Counter(names.values())
    return {f"{name} ({index})" if repeated[name] > 1 else name: index for index, name in names.items()}
