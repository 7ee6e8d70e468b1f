"""The page: tasks on the left, their result on the right; below each other on a phone."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from mmdit.apps.ui.changes import make_edit, make_links, make_translate
from mmdit.apps.ui.errors import shown
from mmdit.apps.ui.examples import Example
from mmdit.apps.ui.inputs import (
    PRIVATE,
    SettingInputs,
    SubjectInputs,
    WordInputs,
    make_examples,
    make_picture,
    make_sheet,
    name_rest,
)
from mmdit.apps.ui.local_blocks import LocalBlocks
from mmdit.apps.ui.panel import ResultPanel
from mmdit.apps.ui.tasks import Tasks
from mmdit.apps.ui.uploads import DEPTH_LABEL, DEPTH_WORDS, Drawing
from mmdit.modalities import IMAGE
from mmdit.modalities.depth_values import DEPTH_VALUES

_FEW = 4  # handlers at a time that only look at results; the model has one at a time


class Page:
    """The browser app of one model, as ``blocks``.

    Args:
        tasks: of the model.
        examples: those that fit it.
    """

    def __init__(self, tasks: Tasks, examples: Sequence[Example] = ()) -> None:
        self.tasks, self.examples = tasks, list(examples)
        self.codecs = tasks.pipe.codecs
        self.events: list[Any] = []
        with LocalBlocks(f"mmdit: {tasks.model}") as self.blocks:
            gr.Markdown(self._introduction())
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    self.tabs = gr.Tabs(elem_id="tasks")
                    self.subjects = SubjectInputs(tasks)
                    self.settings = SettingInputs(tasks)
                    self.stop = gr.Button("Stop", size="sm", elem_id="stop")
                with gr.Column(scale=6, min_width=320):
                    self.panel = ResultPanel(tasks.store, list(self.codecs))
            with self.tabs:
                self._make_generate()
                several = len(self.codecs) > 1
                if IMAGE in self.codecs:
                    image = self._make_understand()
                if several:
                    self._make_condition()
                if IMAGE in self.codecs:
                    source = make_translate(self) if several else None
                    make_links(self, image, source, make_edit(self))
            self.stop.click(lambda: "Stopped.", None, self.panel.status, cancels=self.events, queue=False, **PRIVATE)
        self.blocks.queue(max_size=tasks.limits.waiting, default_concurrency_limit=_FEW, api_open=False)

    def _introduction(self) -> str:
        made = ", ".join(self.codecs)
        text = f"# {html.escape(self.tasks.model)}\nMakes {made}: all of them together, or the rest from any of them."
        if self.tasks.pipe.photographs is False:
            text += " It was trained on rendered scenes and never saw a photograph: what it makes of one is a guess."
        return text

    def listen(self, button: gr.Button, name: str, handler: Callable[..., Iterator[Any]], inputs: list[Any]) -> None:
        """Let a button run a task, which is ``name`` in the web API."""
        event = button.click(
            shown(handler),
            inputs,
            self.panel.outputs,
            api_name=name,
            concurrency_limit=1,
            concurrency_id="model",
            show_progress="minimal",
            show_progress_on=[self.panel.status],
        )
        self.events.append(event)
        event.failure(lambda: "Nothing was made.", None, self.panel.status, queue=False, **PRIVATE)

    # Handlers name their arguments one by one: these are the names of the web API.

    def _make_generate(self) -> None:
        tasks = self.tasks
        with gr.Tab("Generate", id="generate"):
            first = None if tasks.takes_prompts else next(iter(tasks.categories), None)
            words = WordInputs(tasks, "generate", self.subjects, first)
            if not tasks.takes_prompts:
                takes = "categories, no prompts" if tasks.categories else "neither categories nor prompts"
                gr.Markdown(f"This model takes {takes}.")
            run = gr.Button("Generate", variant="primary", elem_id="generate")

        def generate(
            steps: float,
            guidance: float,
            new_seed: bool,
            seed: float,
            num_images: float,
            category: str,
            prompt: str,
            negative_prompt: str,
            fusing_scale: float,
            *pictures: Drawing | None,
        ) -> Iterator[Any]:
            settings = self.settings.read(steps, guidance, new_seed, seed, num_images)
            asked = words.read(category, prompt, negative_prompt, fusing_scale, *pictures)
            yield from self.panel.show(tasks.generate(settings, asked))

        name_rest(generate, words.picture_names)
        self.listen(run, "generate", generate, [*self.settings.components, *words.components, *words.pictures])

    def _make_understand(self) -> gr.Image:
        others = ", ".join(name for name in self.codecs if name != IMAGE)
        with gr.Tab("Understand", id="understand"):
            gr.Markdown(f"{others.capitalize()} of a picture.")
            picture = make_picture("A picture", "image")
            match = gr.Checkbox(True, label="Results at the picture's size")
            run = gr.Button("Understand", variant="primary", elem_id="understand")
            make_examples(self.examples, "Examples", lambda example: str(example.files[IMAGE]), picture)

        def understand(
            steps: float,
            guidance: float,
            new_seed: bool,
            seed: float,
            num_images: float,
            image: str | None = None,
            match_input: bool = True,
        ) -> Iterator[Any]:
            settings = self.settings.read(steps, guidance, new_seed, seed, num_images)
            yield from self.panel.show(self.tasks.understand(settings, image, match_input))

        self.listen(run, "understand", understand, [*self.settings.components, picture, match])
        return picture

    def _make_condition(self) -> None:
        names = list(self.codecs)
        first = [name for name in names if name != IMAGE][:1]
        files, sheets, groups = [], [], []
        with gr.Tab("Condition", id="condition"):
            gr.Markdown("Give any of them, by file or drawing, and the rest is made.")
            given = gr.CheckboxGroup(names, value=first, label="Given", elem_id="given")
            for name in names:
                with gr.Column(visible=name in first) as group, gr.Tabs():
                    with gr.Tab(f"{name}: file"):
                        arrays = [".npy", ".npz", ".exr"] if self.codecs[name].array_files else []
                        files.append(
                            gr.File(show_label=False, file_types=["image", *arrays], height=120, elem_id=f"file_{name}")
                        )
                    with gr.Tab(f"{name}: drawing"):
                        sheets.append(make_sheet(name, self.codecs[name], self.tasks.pipe.native_shape))
                groups.append(group)
            values = gr.Dropdown([(DEPTH_WORDS[name], name) for name in DEPTH_VALUES], value="auto", label=DEPTH_LABEL)
            words = WordInputs(self.tasks, "condition", self.subjects)
            run = gr.Button("Generate the rest", variant="primary", elem_id="condition")
            make_examples(
                self.examples,
                "Examples: fill the files",
                lambda example: [str(example.files[name]) if name in example.files else None for name in names],
                files,
            )

        def show(chosen: list[str]) -> list[Any]:
            return [gr.Column(visible=name in chosen) for name in names]

        given.change(show, given, groups, queue=False, **PRIVATE)

        def condition(
            steps: float,
            guidance: float,
            new_seed: bool,
            seed: float,
            num_images: float,
            given: list[str],
            depth_values: str,
            category: str,
            prompt: str,
            negative_prompt: str,
            fusing_scale: float,
            *fields: Any,
        ) -> Iterator[Any]:
            settings = self.settings.read(steps, guidance, new_seed, seed, num_images)
            uploads, rest = dict(zip(names, fields, strict=False)), fields[len(names) :]
            drawings, pictures = dict(zip(names, rest, strict=False)), rest[len(names) :]
            chosen = {name: uploads[name] for name in names if name in given}
            asked = words.read(category, prompt, negative_prompt, fusing_scale, *pictures)
            yield from self.panel.show(self.tasks.condition(settings, asked, chosen, drawings, depth_values))

        fields = [*files, *sheets, *words.pictures]
        uploaded = [f"{name}_{kind}" for kind in ("file", "drawing") for name in names]
        name_rest(condition, [*uploaded, *words.picture_names])
        inputs = [*self.settings.components, given, values, *words.components, *fields]
        self.listen(run, "condition", condition, inputs)
