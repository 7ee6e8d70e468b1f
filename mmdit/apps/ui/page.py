"""The page: tasks on the left, their result on the right; below each other on a phone."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from mmdit.apps.ui.errors import shown
from mmdit.apps.ui.examples import Example
from mmdit.apps.ui.limits import MAX_SEED
from mmdit.apps.ui.panel import ResultPanel, canvas
from mmdit.apps.ui.tasks import Settings, Tasks, Words
from mmdit.modalities import IMAGE, Codec
from mmdit.modalities.depth import DEPTH_VALUES

NO_CATEGORY = "(none)"
_NUM_SUBJECTS = 3
_SHEET = 512
CSS = """
.gradio-container { max-width: 1280px !important; }
.swatch { display: inline-flex; align-items: center; margin: 0 .8em .2em 0; white-space: nowrap; }
.swatch i { width: 1em; height: 1em; margin-right: .3em; border: 1px solid #888; border-radius: 3px; }
#status { min-height: 3em; }
@media (max-width: 640px) { .gradio-container { padding: 6px !important; } }
"""
THEME = gr.themes.Default(
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),  # of the visitor's machine: none is fetched
)


class Page:
    """The browser app of one model.

    Args:
        tasks: of the model.
        examples: those that fit it.
    """

    def __init__(self, tasks: Tasks, examples: Sequence[Example] = ()) -> None:
        self.tasks, self.examples = tasks, list(examples)
        self.codecs = tasks.pipe.codecs
        self.events: list[Any] = []
        with gr.Blocks(title=f"mmdit: {tasks.model}", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            gr.Markdown(self._introduction())
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    self.tabs = gr.Tabs(elem_id="tasks")
                    self._make_settings()
                with gr.Column(scale=6, min_width=320):
                    self.panel = ResultPanel(tasks.store, list(self.codecs))
            with self.tabs:
                self._make_generate()
                if IMAGE in self.codecs:
                    self._make_understand()
                if len(self.codecs) > 1:
                    self._make_condition()
                if IMAGE in self.codecs:
                    self._make_edit()
            self._make_links()
            self.stop.click(None, cancels=self.events, api_visibility="private")
        self.blocks.queue(max_size=tasks.limits.waiting, default_concurrency_limit=4, api_open=False)

    def _introduction(self) -> str:
        made = ", ".join(self.codecs)
        return f"# {html.escape(self.tasks.model)}\nOne model for {made}: it makes them together, or each from any of the others."

    # ---- shared parts

    def _make_settings(self) -> None:
        limits, defaults = self.tasks.limits, self.tasks.pipe.defaults
        own = defaults.num_inference_steps
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.steps = gr.Slider(
                0, limits.steps, value=0, step=1, label=f"Steps (0: the model's own, {own}, and 1 to understand)"
            )
            self.guidance = gr.Slider(
                0, 10, value=defaults.guidance_scale, step=0.1, label="Guidance on category and prompt (1: none)"
            )
            with gr.Row():
                self.new_seed = gr.Checkbox(True, label="A new seed each time", min_width=120, elem_id="new_seed")
                self.seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED - limits.images, min_width=120
                )
            self.num_images = gr.Slider(1, limits.images, value=1, step=1, label="Samples")
        self.stop = gr.Button("Stop", variant="stop", size="sm", elem_id="stop")
        self.settings = [self.steps, self.guidance, self.new_seed, self.seed, self.num_images]

    def _make_words(self, subjects: bool) -> list[Any]:
        """Category, prompt, negative prompt, fusing scale, subjects' pictures: those that the model takes."""
        tasks, takes = self.tasks, self.tasks.takes_prompts
        category = gr.Dropdown(
            [NO_CATEGORY, *tasks.categories],
            value=next(iter(tasks.categories), NO_CATEGORY) if subjects and not takes else NO_CATEGORY,
            label="Category",
            visible=bool(tasks.categories),
        )
        if not takes:
            gr.Markdown(
                "This model takes categories, no prompts."
                if tasks.categories
                else "This model takes neither categories nor prompts: it makes whatever it was trained on."
            )
        prompt = gr.Textbox(
            label="Prompt; {braces} mark what a picture below stands for" if subjects else "Prompt",
            placeholder="a red torus left of a small blue cone",
            max_length=tasks.limits.characters,
            visible=takes,
        )
        with gr.Accordion("Subjects and negative prompt", open=False, visible=takes and subjects):
            pictures = [
                gr.Image(
                    label=f"Picture of brace {i + 1}",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=160,
                )
                for i in range(_NUM_SUBJECTS)
            ]
            fusing = gr.Slider(
                0, 1, value=0.5, step=0.05, label="Words (0) or pictures (1)", visible=tasks.fuses_subjects
            )
            negative = gr.Textbox(label="Negative prompt", max_length=tasks.limits.characters)
        return [category, prompt, negative, fusing, *pictures]

    def _make_examples(self, label: str, choose: Any, outputs: Any) -> None:
        """A strip of examples; ``choose`` turns one into the values of ``outputs``."""
        if not self.examples:
            return
        gallery = gr.Gallery(
            [str(example.files[IMAGE]) for example in self.examples],
            label=label,
            columns=5,
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_classes="examples",
        )

        def chosen(event: gr.SelectData) -> Any:
            return choose(self.examples[event.index])

        gallery.select(chosen, None, outputs, api_visibility="private", show_progress="hidden")

    def _listen(self, button: gr.Button, name: str, handler: Any, inputs: list[Any]) -> None:
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

    def _settings(
        self, steps: float, guidance: float, new_seed: bool, seed: float | None, num_images: float
    ) -> Settings:
        return Settings.read(self.tasks.limits, steps, guidance, None if new_seed else seed, num_images)

    @staticmethod
    def _words(category: str | None, prompt: str, negative: str, fusing: float, *pictures: str | None) -> Words:
        chosen = "" if category in (None, NO_CATEGORY) else category
        return Words(chosen or "", prompt or "", negative or "", pictures, fusing)

    # ---- the tasks

    def _make_generate(self) -> None:
        with gr.Tab("Generate", id="generate"):
            words = self._make_words(subjects=True)
            run = gr.Button("Generate", variant="primary", elem_id="generate")

        def generate(
            steps: float,
            guidance: float,
            new_seed: bool,
            seed: float,
            num_images: float,
            category: str,
            prompt: str,
            negative: str,
            fusing: float,
            *pictures: str | None,
        ) -> Iterator[Any]:
            settings = self._settings(steps, guidance, new_seed, seed, num_images)
            yield from self.panel.show(
                self.tasks.generate(settings, self._words(category, prompt, negative, fusing, *pictures))
            )

        self._listen(run, "generate", generate, [*self.settings, *words])

    def _make_understand(self) -> None:
        with gr.Tab("Understand", id="understand"):
            self.image = gr.Image(
                label="A picture",
                type="filepath",
                image_mode=None,
                sources=["upload", "webcam", "clipboard"],
                height=300,
                elem_id="image",
            )
            match = gr.Checkbox(True, label="Results at the picture's size")
            run = gr.Button("Understand", variant="primary", elem_id="understand")
            self._make_examples("Examples", lambda example: str(example.files[IMAGE]), self.image)

        def understand(
            steps: float,
            guidance: float,
            new_seed: bool,
            seed: float,
            num_images: float,
            image: str | None,
            match: bool,
        ) -> Iterator[Any]:
            settings = self._settings(steps, guidance, new_seed, seed, num_images)
            yield from self.panel.show(self.tasks.understand(settings, image, match))

        self._listen(run, "understand", understand, [*self.settings, self.image, match])

    def _make_condition(self) -> None:
        names = list(self.codecs)
        default = [name for name in names if name != IMAGE][:1]
        files, sheets, groups = [], [], []
        with gr.Tab("Condition", id="condition"):
            given = gr.CheckboxGroup(names, value=default, label="Given", elem_id="given")
            for name in names:
                with gr.Column(visible=name in default) as group:
                    kinds = ["image", *([".npy", ".npz", ".exr"] if self.codecs[name].array_files else [])]
                    with gr.Tabs():
                        with gr.Tab(f"{name}: file"):
                            files.append(
                                gr.File(
                                    label=name, show_label=False, file_types=kinds, height=120, elem_id=f"file_{name}"
                                )
                            )
                        with gr.Tab(f"{name}: drawing"):
                            sheets.append(self._make_sheet(name))
                groups.append(group)
            depth_values = gr.Dropdown(list(DEPTH_VALUES), value="auto", label="A depth file holds")
            words = self._make_words(subjects=False)
            run = gr.Button("Generate the rest", variant="primary", elem_id="condition")
            self._make_examples(
                "Examples: fill the files",
                lambda example: [str(example.files[name]) if name in example.files else None for name in names],
                files,
            )

        def show(chosen: list[str]) -> list[Any]:
            return [gr.Column(visible=name in chosen) for name in names]

        given.change(show, given, groups, api_visibility="private", show_progress="hidden", queue=False)
        count = len(names)

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
            negative: str,
            fusing: float,
            *rest: Any,
        ) -> Iterator[Any]:
            uploads, drawings = dict(zip(names, rest[:count], strict=True)), dict(zip(names, rest[count:], strict=True))
            settings = self._settings(steps, guidance, new_seed, seed, num_images)
            chosen = {name: uploads[name] for name in names if name in given}
            words = self._words(category, prompt, negative, fusing)
            yield from self.panel.show(self.tasks.condition(settings, words, chosen, drawings, depth_values))

        inputs = [*self.settings, given, depth_values, *words[:4], *files, *sheets]
        self._listen(run, "condition", condition, inputs)

    def _make_sheet(self, name: str) -> gr.ImageEditor:
        """A sheet to draw a modality on, in its own colours."""
        colors = self.codecs[name].drawing_colors()
        height, width = self.tasks.pipe.native_shape
        scale = _SHEET / max(height, width)
        size = (round(width * scale), round(height * scale))
        paper = Image.fromarray(np.full((size[1], size[0], 3), next(iter(colors.values())), dtype=np.uint8))
        gr.HTML(legend(self.codecs[name]))
        return gr.ImageEditor(
            {"background": paper, "layers": [], "composite": paper},
            label=name,
            show_label=False,
            type="pil",
            format="png",
            sources=[],
            transforms=(),
            layers=gr.LayerOptions(allow_additional_layers=False),
            brush=gr.Brush(
                colors=[hexadecimal(color) for color in colors.values()],
                default_color=hexadecimal(list(colors.values())[-1]),
                color_mode="fixed",
                default_size=40,
            ),
            canvas_size=size,
            buttons=[],
            elem_id=f"sheet_{name}",
        )

    def _make_edit(self) -> None:
        with gr.Tab("Edit", id="edit"):
            self.editor = gr.ImageEditor(
                label="Paint over what is to be generated anew",
                type="pil",
                format="png",
                sources=["upload", "clipboard"],
                transforms=("crop",),
                layers=gr.LayerOptions(allow_additional_layers=False),
                brush=gr.Brush(colors=["#ff2fd0"], color_mode="fixed", default_size=40),
                buttons=[],
                elem_id="editor",
            )
            words = self._make_words(subjects=False)
            run = gr.Button("Edit", variant="primary", elem_id="edit")
            self._make_examples("Examples", lambda example: canvas(Image.open(example.files[IMAGE])), self.editor)

        def edit(
            steps: float,
            guidance: float,
            new_seed: bool,
            seed: float,
            num_images: float,
            drawing: dict[str, Any] | None,
            category: str,
            prompt: str,
            negative: str,
            fusing: float,
        ) -> Iterator[Any]:
            settings = self._settings(steps, guidance, new_seed, seed, num_images)
            words = self._words(category, prompt, negative, fusing)
            yield from self.panel.show(self.tasks.edit(settings, words, drawing))

        self._listen(run, "edit", edit, [*self.settings, self.editor, *words[:4]])

    def _make_links(self) -> None:
        """Buttons that take a result's RGB to another task."""
        if IMAGE not in self.codecs:
            return
        chosen = [self.panel.result, self.panel.sample]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

        @shown
        def understand(result: str, sample: int | None) -> Any:
            return gr.Tabs(selected="understand"), self.panel.rgb(result, sample)

        @shown
        def edit(result: str, sample: int | None) -> Any:
            return gr.Tabs(selected="edit"), canvas(self.panel.rgb(result, sample))

        self.panel.to_understand.click(understand, chosen, [self.tabs, self.image], **private)
        self.panel.to_edit.click(edit, chosen, [self.tabs, self.editor], **private)


def legend(codec: Codec) -> str:
    """The names of the colours to draw with, as HTML."""
    swatches = [
        f'<span class="swatch"><i style="background:{hexadecimal(color)}"></i>{html.escape(name)}</span>'
        for name, color in codec.drawing_colors().items()
    ]
    return "".join(swatches)


def hexadecimal(color: Sequence[int]) -> str:
    """(r, g, b) of 0..255 as #rrggbb."""
    return "#" + "".join(f"{channel:02x}" for channel in color)
