"""Prompts in the pipeline: text, subjects, guidance, fusing, beside labels and conditions, on tiny real encoders."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmdit.errors import UserError
from mmdit.models.tiue import PromptInputs
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.prompt import parse

MakePipeline = Callable[..., MultimodalDiTPipeline]
RNG = np.random.default_rng(0)
ONE, TWO = (Image.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(2))
METRES = RNG.uniform(1, 9, (32, 32)).astype(np.float32)
LONG = "a blue cone left of a red torus in front of a cone"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipe: MultimodalDiTPipeline, **arguments: Any) -> Tensor:
    defaults: dict[str, Any] = {"num_inference_steps": 2, "generator": generator(), "output_type": "latent"}
    return pipe(**(defaults | arguments)).latents


def differs(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-4)


def test_words_images_and_order_matter(prompted: MultimodalDiTPipeline) -> None:
    red = latents_of(prompted, prompt="a red torus")
    assert differs(latents_of(prompted, prompt="a blue torus"), red)
    assert torch.equal(latents_of(prompted, prompt="a red torus"), red)
    both = {"prompt": "a {torus} left of a {cone}", "subjects": {"torus": ONE, "cone": TWO}}
    out = latents_of(prompted, **both)
    assert differs(latents_of(prompted, **(both | {"subjects": {"torus": TWO, "cone": ONE}})), out)
    assert torch.equal(latents_of(prompted, **(both | {"subjects": [ONE, TWO]})), out)
    assert differs(latents_of(prompted, prompt="a torus left of a cone"), out)


def test_without_a_prompt_it_is_the_class_model(make_pipeline: MakePipeline, prompted: MultimodalDiTPipeline) -> None:
    plain = make_pipeline(block="dit")
    plain.vae = prompted.vae
    own = prompted.transformer.state_dict()
    plain.transformer.load_state_dict({name: own[name] for name in plain.transformer.state_dict()})
    for arguments in ({}, {"class_labels": "cone"}, {"conditions": {"depth": METRES}, "class_labels": [1, None]}):
        assert torch.equal(latents_of(prompted, **arguments), latents_of(plain, **arguments))


@pytest.mark.parametrize("kind", ["bert", "clip", "t5"])
def test_batch_equals_single(make_prompted: MakePipeline, kind: str) -> None:
    """Prompts of several lengths, with and without images, and a sample without one: padding and mates do not matter."""
    pipe = make_prompted(kind)
    prompts: list[Any] = ["a {torus}", LONG, None, "a red {cone} left of {}"]
    subjects = [{"torus": ONE}, None, None, [TWO, ONE]]
    negative = ["a blue cone", "", "a cone in front of a cone", None]
    batch = latents_of(
        pipe, prompt=prompts, subjects=subjects, negative_prompt=negative, class_labels=[None, None, 1, 3],
        generator=[generator(i) for i in range(4)],
    )  # fmt: skip
    labels = [None, None, 1, 3]
    for i in range(4):
        single = latents_of(
            pipe, prompt=prompts[i], subjects=subjects[i], negative_prompt=negative[i], class_labels=labels[i],
            generator=generator(i),
        )  # fmt: skip
        torch.testing.assert_close(batch[i : i + 1], single, atol=1e-4, rtol=1e-4)


def test_one_prompt_counts_for_all(prompted: MultimodalDiTPipeline) -> None:
    noise = torch.randn(1, 4, 4, 8, 8, generator=generator())
    arguments = {"prompt": "a red {torus}", "subjects": {"torus": ONE}, "conditions": {"depth": METRES}}
    single = latents_of(prompted, **arguments, latents=noise)
    several = latents_of(prompted, **arguments, num_images=3, latents=noise.expand(3, -1, -1, -1, -1))
    torch.testing.assert_close(several, single.expand_as(several), atol=1e-4, rtol=1e-4)
    pair = latents_of(prompted, prompt="a red object", class_labels=["torus", "cone"], num_images=2)
    assert len(pair) == 4


def by_hand(
    pipe: MultimodalDiTPipeline, noise: Tensor, weights: dict[str, float], prompt: Any, negative: Any
) -> Tensor:
    """Two Euler steps of a weighted sum of the branches u (text and images), y (text) and n (nothing, or negative)."""
    model = pipe.transformer
    encoder = pipe.prompt_encoder()
    assert encoder is not None
    roles, label = torch.zeros(1, 4, dtype=torch.long), torch.tensor([-1])
    with torch.no_grad():
        encoded = encoder([prompt])
        branches = {
            "u": model.conditioner(PromptInputs(label, encoded)),
            "y": model.conditioner(PromptInputs(label, encoder([prompt.text_only]))),
            "n": model.conditioner(label)
            if negative is None
            else model.conditioner(PromptInputs(label, encoder([negative]))),
        }
        x = noise.clone()
        for t in (1.0, 0.5):
            v = sum(w * model(x, torch.full((1, 4), t), roles, branches[name]).sample for name, w in weights.items())
            x = x - 0.5 * v
    return x


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("negative", [None, "a blue cone"])
def test_fusing_by_hand(prompted: MultimodalDiTPipeline, alpha: float, negative: str | None) -> None:
    """Eq. 8 of UMM-Diffusion: α w v_u + (1 - α) w v_y + (1 - w) v_none; the negative prompt stands for none."""
    noise, w = torch.randn(1, 4, 4, 8, 8, generator=generator()), 3.0
    out = latents_of(
        prompted, prompt="a {torus}", subjects={"torus": ONE}, negative_prompt=negative, fusing_scale=alpha,
        guidance_scale=w, latents=noise,
    )  # fmt: skip
    weights = {"u": alpha * w, "y": (1 - alpha) * w, "n": 1 - w}
    expected = by_hand(prompted, noise, weights, parse("a {torus}", [ONE]), negative and parse(negative))
    torch.testing.assert_close(out, expected, atol=2e-4, rtol=1e-3)


def test_ends_of_the_fusing_scale_are_exact(prompted: MultimodalDiTPipeline) -> None:
    subject = {"prompt": "a {torus}", "subjects": {"torus": ONE}}
    text = latents_of(prompted, prompt="a torus")
    assert torch.equal(latents_of(prompted, **subject, fusing_scale=0.0), text)
    assert torch.equal(latents_of(prompted, prompt="a torus", fusing_scale=0.7), text)  # nothing to fuse
    default = latents_of(prompted, **subject)
    assert torch.equal(latents_of(prompted, **subject, fusing_scale=0.5), default)
    images = latents_of(prompted, **subject, fusing_scale=1.0)
    assert torch.equal(
        images, latents_of(prompted, **(subject | {"subjects": {"torus": ONE.copy()}}), fusing_scale=1.0)
    )
    assert differs(images, default)
    assert differs(text, default)


def test_the_negative_prompt_stands_for_no_prompt(prompted: MultimodalDiTPipeline) -> None:
    plain = latents_of(prompted, prompt="a torus", guidance_scale=1.0)
    away = latents_of(prompted, prompt="a torus", negative_prompt="a cone")
    assert differs(away, latents_of(prompted, prompt="a torus"))
    assert torch.equal(
        latents_of(prompted, prompt="a torus", negative_prompt=""), latents_of(prompted, prompt="a torus")
    )
    torch.testing.assert_close(
        latents_of(prompted, prompt="a torus", negative_prompt="a torus"), plain, atol=1e-4, rtol=1e-4
    )
    assert differs(latents_of(prompted, negative_prompt="a cone"), latents_of(prompted))
    assert differs(latents_of(prompted, class_labels=1, negative_prompt="a cone"), latents_of(prompted, class_labels=1))


def test_a_model_may_have_its_own_guidance_on_prompts(prompted: MultimodalDiTPipeline) -> None:
    defaults = {"guidance_scale": 1.5, "prompt_guidance_scale": 3.0}
    pipe = MultimodalDiTPipeline(**prompted.components, **prompted.parameters | {"defaults": defaults})
    assert pipe.defaults.described() == "25 steps, guidance 1.5 (on prompts guidance 3)"
    away = {"class_labels": 1, "negative_prompt": "a cone"}
    plain = {"class_labels": 1, "negative_prompt": ""}
    for asked, scale in (({"prompt": "a red torus"}, 3.0), ({"class_labels": 1}, 1.5), (away, 3.0), (plain, 1.5)):
        found, named = latents_of(pipe, **asked), latents_of(pipe, **asked, guidance_scale=scale)
        assert torch.equal(found, named)
        assert differs(found, latents_of(pipe, **asked, guidance_scale=2.0))
    both = {"prompt": "a red torus", "class_labels": "torus"}
    assert torch.equal(latents_of(pipe, **both), latents_of(pipe, **both, guidance_scale=3.0))
    assert prompted.defaults.guidance(prompt=True) == prompted.defaults.guidance_scale == 2.0


def test_beside_labels_conditions_and_masks(prompted: MultimodalDiTPipeline) -> None:
    prompt = {"prompt": "a red torus"}
    assert differs(latents_of(prompted, **prompt, class_labels="torus"), latents_of(prompted, **prompt))
    given = {"conditions": {"depth": METRES}}
    both = latents_of(prompted, **prompt, **given, condition_guidance_scale=2.0, guidance_interval=(0.0, 0.9))
    assert torch.equal(both[:, 1], latents_of(prompted, **given)[:, 1])
    assert differs(both, latents_of(prompted, **prompt, condition_guidance_scale=2.0))
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 8:24] = True
    out = prompted(**prompt, **given, mask=mask, num_inference_steps=2, generator=generator())
    np.testing.assert_array_equal(out.depth[0][~mask], prompted(**given, num_inference_steps=1).depth[0][~mask])


def test_subjects_are_read_as_conditions_are(prompted: MultimodalDiTPipeline) -> None:
    """Deep grey, transparency and EXIF's orientation: the picture as it is seen, over white."""
    seen = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    turned = Image.fromarray(np.rot90(seen))  # as a camera held on its side stores it
    turned.getexif()[0x0112] = 6
    see_through = Image.fromarray(np.dstack([seen, np.full((20, 30), 255, dtype=np.uint8)]))
    see_through.putpixel((3, 4), (9, 9, 9, 0))
    white = seen.copy()
    white[4, 3] = 255
    grey = Image.fromarray(seen[..., 0].astype(np.uint16) * 257)
    pairs = [
        (turned, Image.fromarray(seen)),
        (see_through, Image.fromarray(white)),
        (grey, Image.fromarray(seen[..., 0].repeat(3).reshape(20, 30, 3))),
        ((Image.fromarray(seen), np.arange(600).reshape(20, 30) < 300),
         Image.fromarray(np.where((np.arange(600).reshape(20, 30) < 300)[..., None], seen, 255).astype(np.uint8))),
    ]  # fmt: skip
    for given, expected in pairs:
        one, other = (latents_of(prompted, prompt="{}", subjects=[image]) for image in (given, expected))
        assert torch.equal(one, other)


def test_encode_prompt(prompted: MultimodalDiTPipeline) -> None:
    made = prompted.encode_prompt(["a {torus}", LONG], [{"torus": ONE}, None], class_labels="torus", num_images=2)
    assert made.conditioning.vector.shape == (4, 32)
    assert made.text is not None
    assert torch.equal(made.text.vector[2:], made.conditioning.vector[2:])  # no image, nothing to leave out
    assert differs(made.text.vector[:2], made.conditioning.vector[:2])
    assert made.null is not None
    assert made.null.tokens is None
    assert prompted.encode_prompt("a torus").text is None


def test_tuple_equals_dict_and_callbacks(prompted: MultimodalDiTPipeline) -> None:
    arguments: dict[str, Any] = {"prompt": "a {torus}", "subjects": {"torus": ONE}, "num_inference_steps": 2}
    fields = prompted(**arguments, generator=generator(), output_type="np")
    values = prompted(**arguments, generator=generator(), output_type="np", return_dict=False)
    for field, value in zip(fields.to_tuple(), values, strict=True):
        assert np.array_equal(field, value)
    steps: list[int] = []

    def callback(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        pipe._guidance_scale = 1.0
        return tensors

    changed = latents_of(prompted, **arguments, guidance_scale=4.0, callback_on_step_end=callback)
    assert steps == [0, 1]
    assert differs(changed, latents_of(prompted, **arguments, guidance_scale=4.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(prompted: MultimodalDiTPipeline, dtype: torch.dtype) -> None:
    arguments = {"prompt": "a {torus}", "subjects": {"torus": ONE}}
    expected = latents_of(prompted, **arguments)
    for encoder in (prompted.text_encoder, prompted.image_encoder):
        encoder.to(dtype)
    out = latents_of(prompted, **arguments)  # encoders in half precision, the transformer not
    assert (out - expected).abs().max() < 0.1 * expected.abs().max()
    assert prompted.dtype == torch.float32
    prompted.to(dtype)
    out = latents_of(prompted, **arguments)
    assert (out - expected).abs().max() < 0.15 * expected.abs().max()


def test_offloaded_weights(prompted: MultimodalDiTPipeline) -> None:
    accelerate = pytest.importorskip("accelerate")
    arguments = {"prompt": ["a {torus}", LONG], "subjects": [{"torus": ONE}, None], "negative_prompt": "a cone"}
    expected = latents_of(prompted, **arguments)
    for model in (prompted.text_encoder, prompted.image_encoder, prompted.transformer, prompted.vae):
        accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
    assert next(prompted.text_encoder.parameters()).is_meta
    torch.testing.assert_close(latents_of(prompted, **arguments), expected, atol=1e-5, rtol=1e-5)
    prompted.remove_all_hooks()
    assert prompted.model_cpu_offload_seq == "text_encoder->image_encoder->transformer->vae"


def test_offloaded_models(make_prompted: MakePipeline) -> None:
    """One model after another on the device; the text encoder reads subjects' words again after the image encoder ran."""
    pytest.importorskip("accelerate")
    arguments = {"prompt": ["a {torus}", LONG], "subjects": [{"torus": ONE}, None], "negative_prompt": "a cone"}
    expected = latents_of(make_prompted(), **arguments)
    pipe = make_prompted()
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        torch.testing.assert_close(latents_of(pipe, **arguments), expected, atol=1e-5, rtol=1e-5)


def test_another_encoder_is_taken_up(prompted: MultimodalDiTPipeline) -> None:
    expected = latents_of(prompted, prompt="a {torus}", subjects=[ONE])
    copied = copy.deepcopy(prompted.text_encoder)
    prompted.text_encoder = copied  # another object: what encodes is built again, hooks are not doubled
    assert torch.equal(latents_of(prompted, prompt="a {torus}", subjects=[ONE]), expected)
    table = copied.get_input_embeddings()
    assert len(table._forward_hooks) == 1
    assert not any(parameter.requires_grad for parameter in copied.parameters())


FOUR = dict.fromkeys(["torus", "cone", "red", "blue"], ONE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a {torus}"}, r"\{torus\} in the prompt has no image|marks 1 subjects"),
        ({"prompt": "a torus", "subjects": {"torus": ONE}}, r"subject 'torus' is not in the prompt: write \{torus\}"),
        ({"prompt": "a {torus", "subjects": {"torus": ONE}}, "is not closed"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": ["a torus", " "]}, "prompt is empty"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": 3}, "prompt is a int: give a text"),
        ({"subjects": {"torus": ONE}}, "subjects are given without a prompt"),
        ({"prompt": "a {torus}", "subjects": {"torus": "torus.png"}}, "a subject is a str: give a PIL image"),
        ({"prompt": "a {torus}", "subjects": ONE}, "subjects is a Image: give word -> image"),
        ({"prompt": "a {torus}", "subjects": [(ONE, np.ones((3, 3)))]}, "mask has shape"),
        ({"prompt": ["a {torus}"], "subjects": {"torus": ONE}}, "subjects is a dict for a list of 1 prompts"),
        ({"prompt": ["a {torus}"] * 2, "subjects": [[ONE]]}, "subjects is 1 for a list of 2 prompts"),
        ({"prompt": "{torus} {cone} {red} {blue} {}", "subjects": [ONE] * 5}, "has 5 subjects, the model takes 4"),
        ({"prompt": "a torrus"}, "doesn't know 'torrus'; nearest are torus"),
        ({"prompt": "a torus", "negative_prompt": "a torrus"}, "doesn't know 'torrus'"),
        ({"prompt": "a red torus left of a blue cone in front of a red cone left of a torus"}, "'left of a torus' would be lost"),
        ({"prompt": "a red torus", "class_labels": "cone"}, "names torus, and the category is 'cone': name it in the prompt too"),
        ({"prompt": "a torus", "fusing_scale": 1.5}, "fusing_scale is 1.5: give a number from 0"),
        ({"prompt": "a torus", "fusing_scale": "0.5"}, "fusing_scale is '0.5'"),
        ({"prompt": ["a torus"] * 2, "class_labels": [0, 1, 2]}, "inputs differ in number: class_labels 3, prompt 2"),
        ({"prompt": "a torus", "negative_prompt": ["a cone"] * 2, "class_labels": [None] * 3}, "negative_prompt 2"),
    ],
)  # fmt: skip
def test_bad_input(prompted: MultimodalDiTPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prompted(**arguments, num_inference_steps=1)
    assert "\n" not in str(caught.value)
    if "subjects" not in arguments or "prompt" in arguments:
        with pytest.raises(UserError, match=message):
            prompted.check_prompt(**({"prompt": None} | arguments))


def test_a_prompt_that_agrees_with_its_category(prompted: MultimodalDiTPipeline) -> None:
    for prompt in ("a red torus", "a cone left of a torus", "a red object"):
        prompted.check_prompt(prompt, class_labels="torus")


def test_models_without_prompts(pipe: MultimodalDiTPipeline, make_pipeline: MakePipeline) -> None:
    for arguments in ({"prompt": "a torus"}, {"negative_prompt": "a torus"}):
        with pytest.raises(UserError, match="this model takes no prompt: give class_labels"):
            pipe(**arguments)
        with pytest.raises(UserError, match="this model takes no prompt: give class_labels"):
            pipe.check_prompt(**{"prompt": None, **arguments})
    with pytest.raises(UserError, match="this model takes no subjects' images"):
        pipe(subjects=[ONE])
    with pytest.raises(UserError, match=r"fusing_scale is 0\.5, but this model has no prediction from the text alone"):
        pipe("torus", fusing_scale=0.5)
    bare = make_pipeline(block="cross", conditioner="tiue", conditioner_settings={"text_width": 16, "image_width": 6})
    assert len(latents_of(bare, class_labels="torus")) == 1
    with pytest.raises(
        UserError, match="has no text_encoder and tokenizer, which its prompts need: give the components"
    ):
        bare(prompt="a torus")


def test_components_must_fit(make_pipeline: MakePipeline, prompted: MultimodalDiTPipeline) -> None:
    own = {
        name: prompted.components[name] for name in ("text_encoder", "tokenizer", "image_encoder", "image_processor")
    }
    config = {"block": "cross", "conditioner": "tiue"}
    with pytest.raises(
        UserError, match="the encoder of prompts has text_width 16, the transformer was trained with 768"
    ):
        make_pipeline(components=own, **config)
    settings = {"text_width": 16, "image_width": 6}
    with pytest.raises(UserError, match="image_encoder is given without image_processor"):
        make_pipeline(components={**own, "image_processor": None}, **config, conditioner_settings=settings)
    text = {name: own[name] for name in ("text_encoder", "tokenizer")}
    pipe = make_pipeline(components=text, **config, conditioner_settings=settings)
    assert len(latents_of(pipe, prompt="a torus")) == 1
    with pytest.raises(UserError, match="takes no subjects' images: give text alone"):
        pipe(prompt="a {torus}", subjects=[ONE])
