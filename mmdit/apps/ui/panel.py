"""The right half of the page: previews, the result in four views, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from mmdit.apps.ui.errors import shown
from mmdit.apps.ui.inputs import PRIVATE, swatches
from mmdit.apps.ui.results import ResultStore
from mmdit.apps.ui.sampling import Preview
from mmdit.apps.ui.shape import read_fov, write_shape
from mmdit.apps.ui.tasks import Done
from mmdit.modalities import IMAGE


class ResultPanel:
    """Shows results of all tasks. Made inside a page."""

    def __init__(self, store: ResultStore, modalities: Sequence[str]) -> None:
        self.store, self.modalities = store, list(modalities)
        first, second = self.modalities[0], self.modalities[min(1, len(self.modalities) - 1)]
        self.result = gr.State("", time_to_live=store.keep_seconds)
        self.status = gr.Markdown("No result yet.", label="status", elem_id="status")
        self.sample = gr.Radio([], label="Sample", visible=False, type="index", elem_id="sample")
        with gr.Tabs():
            with gr.Tab("Pictures"):
                self.gallery = gr.Gallery(
                    label="Result",
                    show_label=False,
                    columns=2,
                    height="auto",
                    object_fit="contain",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="pictures",
                )
                self.legend = gr.HTML(elem_id="legend")
            with gr.Tab("Compare"):
                with gr.Row(elem_classes="pair"):
                    self.left = gr.Dropdown(self.modalities, value=first, label="Left", min_width=100, elem_id="left")
                    self.right = gr.Dropdown(
                        self.modalities, value=second, label="Right", min_width=100, elem_id="right"
                    )
                self.slider = gr.ImageSlider(
                    label="Drag the line", format="png", interactive=False, max_height=640, elem_id="slider"
                )
            with gr.Tab("3-D"):
                with gr.Row():  # a field for text: one for numbers sends 0 where it is empty
                    self.fov = gr.Textbox(
                        label="Field of view, degrees",
                        placeholder="estimated",
                        max_length=20,
                        min_width=140,
                        elem_id="fov",
                    )
                    self.build = gr.Button("Build the 3-D view", min_width=140, elem_id="build")
                self.model = gr.Model3D(
                    label="Drag to turn, scroll or pinch to zoom",
                    clear_color=(0.94, 0.94, 0.94, 1.0),
                    camera_position=(90, 90, None),
                    interactive=False,
                    height=420,
                    elem_id="shape",
                )
                self.camera = gr.Markdown(elem_id="camera")
            with gr.Tab("Files"):
                self.files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files")
                if not store.exr and any(codec.exr_name for codec in store.codecs.values()):
                    gr.Markdown("With `pip install 'multimodal-dit[exr]'` where the server runs: OpenEXR files too.")
        self.again = gr.Row(visible=False)
        with self.again:
            self.to_understand = gr.Button("Understand this RGB", size="sm")
            self.to_translate = gr.Button("Translate this RGB", size="sm")
            self.to_edit = gr.Button("Edit this RGB", size="sm")
        self._listen()

    @property
    def outputs(self) -> list[Any]:
        """What a task fills."""
        return [
            self.result,
            self.status,
            self.sample,
            self.gallery,
            self.legend,
            self.slider,
            self.model,
            self.camera,
            self.files,
            self.again,
        ]

    def show(self, events: Iterator[Preview | Done]) -> Iterator[tuple[Any, ...]]:
        """Values of ``outputs`` for what a task tells."""
        yield (gr.skip(), "Working …", *[gr.skip()] * (len(self.outputs) - 2))
        for event in events:
            yield self._preview(event) if isinstance(event, Preview) else self._done(event)

    def _preview(self, preview: Preview) -> tuple[Any, ...]:
        pictures = [(path, name) for name, path in self.store.draw(preview.arrays).items()]
        status = f"Step {preview.step} of {preview.num_steps} …"
        return (gr.skip(), status, gr.skip(), pictures, *[gr.skip()] * (len(self.outputs) - 4))

    def _done(self, done: Done) -> tuple[Any, ...]:
        several = len(done.samples) > 1
        pictures = [
            (path, f"{name}, seed {seed}" if several else name)
            for index, seed in enumerate(done.seeds)
            for name, path in self.store.pictures(done.name, index).items()
        ]
        seeds = [f"seed {seed}" for seed in done.seeds]
        return (
            done.name,
            "  \n".join([done.summary, *(f"Note: {note}" for note in done.notes)]),
            gr.Radio(seeds, value=seeds[0], visible=several),
            pictures,
            swatches(self._legend(done.samples)),
            self._pair(done.name, 0, self.left.value, self.right.value),
            None,
            "",
            self.store.files(done.name),
            gr.Row(visible=IMAGE in done.samples[0]),
        )

    def _legend(self, samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Sequence[int]]:
        """What the colours of the pictures mean, where they have names."""
        colors: dict[str, Sequence[int]] = {}
        for arrays in samples:
            for name, array in arrays.items():
                colors |= self.store.codecs[name].legend(array)
        return colors

    def _pair(self, result: str, sample: int | None, left: str, right: str) -> tuple[str, str]:
        pictures = self.store.pictures(result, sample or 0)
        return pictures[left], pictures[right]

    def _listen(self) -> None:
        @shown
        def compare(result: str, sample: int | None, left: str, right: str) -> Any:
            return self._pair(result, sample, left, right) if result else gr.skip()

        @shown
        def choose(result: str, sample: int | None, left: str, right: str) -> Any:
            if not result:
                return [gr.skip()] * 4
            return compare(result, sample, left, right), None, "", self.store.files(result, sample or 0)

        @shown
        def build(result: str, sample: int | None = None, fov: str | None = None) -> Any:
            if not result:
                raise gr.Error("there is no result yet: make one first", print_exception=False)
            path, camera = write_shape(self.store, result, sample or 0, read_fov(fov or ""))
            return str(path), f"Camera: {camera}", self.store.files(result, sample or 0)

        chosen = [self.result, self.sample, self.left, self.right]
        for side in (self.left, self.right):
            side.input(compare, chosen, self.slider, **PRIVATE)
        self.sample.input(choose, chosen, [self.slider, self.model, self.camera, self.files], **PRIVATE)
        inputs = [self.result, self.sample, self.fov]
        self.build.click(build, inputs, [self.model, self.camera, self.files], api_name="shape")

    def rgb(self, result: str, sample: int | None) -> Image.Image:
        """The RGB image of a stored sample."""
        return Image.fromarray(self.store.arrays(result, sample or 0)[IMAGE])
