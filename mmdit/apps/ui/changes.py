"""The tabs that change a given picture, in all but its geometry or in a region, and the buttons that take a result there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from mmdit.apps.ui.errors import shown
from mmdit.apps.ui.inputs import PRIVATE, WordInputs, canvas, make_examples, make_painted, make_picture, name_rest
from mmdit.apps.ui.uploads import Drawing
from mmdit.modalities import IMAGE

if TYPE_CHECKING:
    from mmdit.apps.ui.page import Page

# Handlers name their arguments one by one: these are the names of the web API.


def make_translate(page: Page) -> gr.Image:
    """The tab of a new picture with the geometry of a given one; returns where that goes."""
    others = [name for name in page.codecs if name != IMAGE]
    with gr.Tab("Translate", id="translate"):
        gr.Markdown("A new picture that keeps what you choose of a given one.")
        source = make_picture("A picture", "source")
        keep = gr.CheckboxGroup(others, value=others, label="What of it stays", elem_id="keep")
        words = WordInputs(page.tasks, "translate", page.subjects)
        strength = _strength()
        match = gr.Checkbox(False, label="Result at the picture's size", elem_id="translate_match")
        run = gr.Button("Translate", variant="primary", elem_id="translate")
        make_examples(page.examples, "Examples", lambda example: str(example.files[IMAGE]), source)

    def translate(
        steps: float,
        guidance: float,
        new_seed: bool,
        seed: float,
        num_images: float,
        image: str | None = None,
        keep: list[str] = others,
        category: str = "",
        prompt: str = "",
        negative_prompt: str = "",
        fusing_scale: float | None = None,
        strength: float = 1.0,
        match_input: bool = False,
        *pictures: Drawing | None,
    ) -> Iterator[Any]:
        settings = page.settings.read(steps, guidance, new_seed, seed, num_images)
        asked = words.read(category, prompt, negative_prompt, fusing_scale, *pictures)
        yield from page.panel.show(
            page.tasks.translate(settings, asked, image, keep, strength=strength, match_input=match_input)
        )

    inputs = [*page.settings.components, source, keep, *words.components, strength, match, *words.pictures]
    name_rest(translate, words.picture_names)
    page.listen(run, "translate", translate, inputs)
    return source


def make_edit(page: Page) -> gr.ImageEditor:
    """The tab of a region that is generated anew; returns where the picture goes."""
    with gr.Tab("Edit", id="edit"):
        gr.Markdown("Paint over what is to be generated anew.")
        editor = make_painted("A picture", "editor", "#ff2fd0", page.tasks.limits)
        words = WordInputs(page.tasks, "edit", page.subjects)
        strength = _strength()
        match = gr.Checkbox(False, label="Result at the picture's size", elem_id="edit_match")
        run = gr.Button("Edit", variant="primary", elem_id="edit")
        make_examples(page.examples, "Examples", lambda example: canvas(Image.open(example.files[IMAGE])), editor)

    def edit(
        steps: float,
        guidance: float,
        new_seed: bool,
        seed: float,
        num_images: float,
        drawing: dict[str, Any] | None = None,
        category: str = "",
        prompt: str = "",
        negative_prompt: str = "",
        fusing_scale: float | None = None,
        strength: float = 1.0,
        match_input: bool = False,
        *pictures: Drawing | None,
    ) -> Iterator[Any]:
        settings = page.settings.read(steps, guidance, new_seed, seed, num_images)
        asked = words.read(category, prompt, negative_prompt, fusing_scale, *pictures)
        yield from page.panel.show(
            page.tasks.edit(settings, asked, drawing, strength=strength, match_input=match_input)
        )

    inputs = [*page.settings.components, editor, *words.components, strength, match, *words.pictures]
    name_rest(edit, words.picture_names)
    page.listen(run, "edit", edit, inputs)
    return editor


def make_links(page: Page, image: gr.Image, source: gr.Image | None, editor: gr.ImageEditor) -> None:
    """Let the buttons under a result take its RGB to another task; ``source`` None = there is nothing to translate to."""
    panel = page.panel
    targets = {
        "understand": (panel.to_understand, image, lambda picture: picture),
        "translate": (panel.to_translate, source, lambda picture: picture),
        "edit": (panel.to_edit, editor, canvas),
    }
    for tab, (button, field, given) in targets.items():
        if field is None:
            button.visible = False
            continue

        @shown
        def go(result: str, sample: int | None, tab: str = tab, given: Any = given) -> Any:
            return gr.Tabs(selected=tab), given(panel.rgb(result, sample))

        button.click(go, [panel.result, panel.sample], [page.tabs, field], **PRIVATE)


def _strength() -> gr.Slider:
    return gr.Slider(0, 1, value=1, step=0.05, label="How far from the picture (1: all anew)")
