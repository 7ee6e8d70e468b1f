"""Groups of inputs that several tasks share."""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from mmdit.apps.ui.errors import shown
from mmdit.apps.ui.examples import Example
from mmdit.apps.ui.limits import MAX_SEED, Limits
from mmdit.apps.ui.results import enlarged
from mmdit.apps.ui.tasks import Settings, Tasks, Words
from mmdit.apps.ui.uploads import Drawing, has_picture
from mmdit.modalities import IMAGE, Codec
from mmdit.pipelines.defaults import Defaults

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # handlers that are no task
NO_CATEGORY = "(none)"
_NUM_SUBJECTS = 3
_SHEET = 512  # pixels, the longer side
_MAX_GUIDANCE = 10


def _guidance(own: Defaults, *, prompt: bool) -> str:
    """A model's own guidance with a prompt or without, of the two kinds the one that is on."""
    scale, internal = own.guided(None, None, prompt=prompt)
    parts = [f"{scale:g}"] if scale != 1 or internal == 1 else []
    return " and ".join([*parts, *([] if internal == 1 else [f"internal {internal:g}"])])


class SettingInputs:
    """Steps, guidance, seed and number of samples."""

    def __init__(self, tasks: Tasks) -> None:
        self.limits, own = tasks.limits, tasks.pipe.defaults
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            taken = " or ".join(dict.fromkeys(str(own.steps(prompt=prompt)) for prompt in (False, True)))
            steps = f"Steps (0: the model's own, {taken}, and 1 to understand)"
            self.steps = gr.Slider(0, self.limits.steps, value=0, step=1, label=steps, elem_id="steps")
            usual = " or ".join(dict.fromkeys(_guidance(own, prompt=prompt) for prompt in (False, True)))
            guidance = f"Guidance on category and prompt (0: the model's own, {usual}; 1: none)"
            self.guidance = gr.Slider(0, _MAX_GUIDANCE, value=0, step=0.1, label=guidance, elem_id="guidance")
            with gr.Row():
                self.new_seed = gr.Checkbox(True, label="A new seed each time", min_width=120, elem_id="new_seed")
                most = MAX_SEED - self.limits.images
                self.seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=most, min_width=120, elem_id="seed"
                )
            self.num_images = gr.Slider(1, self.limits.images, value=1, step=1, label="Samples", elem_id="samples")

    @property
    def components(self) -> list[Any]:
        """In the order of ``read``."""
        return [self.steps, self.guidance, self.new_seed, self.seed, self.num_images]

    def read(self, steps: float, guidance: float, new_seed: bool, seed: float | None, num_images: float) -> Settings:
        """Raises UserError for a value out of range."""
        return Settings.read(self.limits, steps, guidance, None if new_seed else seed, num_images)


class SubjectInputs:
    """Pictures of subjects, how much they count, and the negative prompt: one group for the prompts of all tasks.

    An editor takes two of the sixteen WebGL contexts that a browser gives a page, so each task can't have its own.
    """

    def __init__(self, tasks: Tasks) -> None:
        title = "Pictures for {braces}, negative prompt"
        with gr.Accordion(title, open=False, visible=tasks.takes_prompts, elem_id="subjects"):
            gr.Markdown(
                "One picture for each {word} of a prompt, in their order. Paint over the subject in it; nothing = all of it."
            )
            self.pictures = [
                make_painted(f"Picture {number}", f"subject_{number}", "#2fd0ff", tasks.limits, height=320)
                for number in range(1, _NUM_SUBJECTS + 1)
            ]
            self.fusing = gr.Slider(
                0,
                1,
                value=0.5,
                step=0.05,
                label="What counts: words alone (0) to pictures (1)",
                visible=tasks.fuses_subjects,
            )
            self.negative = gr.Textbox(
                "", label="Negative prompt: what to lead away from", max_length=tasks.limits.characters
            )


class WordInputs:
    """Category and prompt of a task, as far as the model takes them.

    Args:
        tasks: of the model.
        task: its name, which names its fields.
        subjects: of all tasks.
        category: the one chosen first; None = none.
    """

    def __init__(self, tasks: Tasks, task: str, subjects: SubjectInputs, category: str | None = None) -> None:
        self.subjects = subjects
        self.category = gr.Dropdown(
            [NO_CATEGORY, *tasks.categories],
            value=category or NO_CATEGORY,
            label="Category",
            visible=bool(tasks.categories),
        )
        self.prompt = gr.Textbox(
            "",
            label="Prompt",
            info="Words in {braces} take their looks from a picture below: a {torus}",
            placeholder="a red torus left of a small blue cone",
            max_length=tasks.limits.characters,
            visible=tasks.takes_prompts,
            elem_id=f"{task}_prompt",
        )

    @property
    def components(self) -> list[Any]:
        """In the order of ``read``, but for ``pictures``, which come last of all."""
        return [self.category, self.prompt, self.subjects.negative, self.subjects.fusing]

    @property
    def pictures(self) -> list[Any]:
        """Fields of subjects' pictures."""
        return self.subjects.pictures

    @property
    def picture_names(self) -> list[str]:
        """What the web API calls ``pictures``."""
        return [f"picture_{number + 1}" for number in range(len(self.pictures))]

    @staticmethod
    def read(
        category: str | None, prompt: str | None, negative: str | None, fusing: float | None, *pictures: Drawing | None
    ) -> Words:
        """What they say."""
        chosen = "" if category in (None, NO_CATEGORY) else category
        return Words(chosen or "", prompt or "", negative or "", pictures, fusing)


def name_rest(handler: Callable[..., Any], names: Sequence[str]) -> None:
    """Give the ``*rest`` of a handler names, for the web API; all of them may be left out."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [each for each in inspect.signature(handler).parameters.values() if each.kind is kind]
    more = [inspect.Parameter(name, kind, default=None) for name in names]
    handler.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]


def make_examples(examples: Sequence[Example], label: str, choose: Callable[[Example], Any], outputs: Any) -> None:
    """A strip of examples; ``choose`` turns the one that is chosen into values of ``outputs``."""
    if not examples:
        return
    gallery = gr.Gallery(
        [str(example.files[IMAGE]) for example in examples],
        label=label,
        columns=5,
        height="auto",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_classes="examples",
    )

    def chosen(event: gr.SelectData) -> Any:
        return choose(examples[event.index])

    gallery.select(chosen, None, outputs, **PRIVATE)


def make_picture(label: str, elem_id: str) -> gr.Image:
    """A field for one picture."""
    return gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        height=300,
        elem_id=elem_id,
        elem_classes="picture",
    )


def _fit_uploads(editor: gr.ImageEditor, limits: Limits) -> None:
    """Let an editor hold uploads at sizes that a brush fits: small ones are enlarged, large ones shrunk."""

    @shown
    def fit(drawing: Drawing | None) -> Any:
        if drawing is None or not has_picture(drawing):
            return gr.skip()
        background = drawing["background"]
        limits.check_pixels("the picture", *background.size)
        return canvas(limits.shrink(background))

    editor.upload(fit, editor, editor, **PRIVATE)


def canvas(image: Image.Image) -> dict[str, Any]:
    """A picture to paint on, a small one enlarged."""
    large = Image.fromarray(enlarged(np.asarray(image.convert("RGB")), _SHEET))
    return {"background": large, "layers": [], "composite": large}


def make_painted(label: str, elem_id: str, color: str, limits: Limits, **shape: Any) -> gr.ImageEditor:
    """A field for a picture that is painted over with one colour, ``shape`` being gradio's of the field."""
    editor = gr.ImageEditor(
        label=label,
        type="pil",
        format="png",
        sources=["upload", "clipboard"],
        transforms=("crop",),
        layers=False,
        brush=gr.Brush(colors=[color], color_mode="fixed", default_size=40),
        buttons=[],
        elem_id=elem_id,
        **shape,
    )
    _fit_uploads(editor, limits)
    return editor


def make_sheet(name: str, codec: Codec, native: tuple[int, int]) -> gr.ImageEditor:
    """A sheet to draw a modality on, in its own colours and the proportions of ``native`` (height, width)."""
    colors = codec.drawing_colors()
    scale = _SHEET / max(native)
    height, width = (round(side * scale) for side in native)
    paper = Image.fromarray(np.full((height, width, 3), next(iter(colors.values())), dtype=np.uint8))
    gr.HTML(swatches(colors))
    return gr.ImageEditor(
        {"background": paper, "layers": [], "composite": paper},
        label=name,
        show_label=False,
        type="pil",
        format="png",
        sources=[],
        transforms=(),
        layers=False,
        brush=gr.Brush(
            colors=[hexadecimal(color) for color in colors.values()],
            default_color=hexadecimal(list(colors.values())[-1]),
            color_mode="fixed",
            default_size=40,
        ),
        canvas_size=(width, height),
        buttons=[],
        elem_id=f"sheet_{name}",
    )


def swatches(colors: Mapping[str, Sequence[int]]) -> str:
    """Colours and their names, as HTML."""
    listed = [
        f'<span class="swatch"><i style="background:{hexadecimal(color)}"></i>{html.escape(name)}</span>'
        for name, color in colors.items()
    ]
    return "".join(listed)


def hexadecimal(color: Sequence[int]) -> str:
    """(r, g, b) of 0..255 as #rrggbb."""
    return "#" + "".join(f"{channel:02x}" for channel in color)
