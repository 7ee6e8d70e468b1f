"""What the README says is true: its commands are parsed, the quick ones are run, its example and its table hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mmdit.cli.common.parsing import build_parser
from mmdit.cli.main import COMMANDS, find_command
from mmdit.cli.results import (
    CARD,
    CARD_TABLES,
    TABLES,
    diversity_table,
    generation_table,
    lora_table,
    prompts_table,
    put,
    results_table,
    update,
    video_table,
)
from mmdit.pipelines.loading import bundled_models
from mmdit.storage.yaml_text import read_yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
LINES = [
    line.strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip()
]
COMMAND_LINES = [part.strip() for line in LINES for part in line.split("&&") if part.strip().startswith("mmdit ")]

needs_model = pytest.mark.skipif("scenes64" not in bundled_models(), reason="the model is not bundled yet")


def test_first_two_commands():
    assert LINES[:2] == ["pip install -e . && mmdit demo", "pip install -e '.[dev]' && pytest -n 2 --dist loadfile"]


def test_every_command_is_shown():
    shown = {find_command(shlex.split(line)[1:])[0] for line in COMMAND_LINES}
    assert shown == COMMANDS.keys()


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_parses(line, monkeypatch):
    monkeypatch.chdir(ROOT)  # configs are named relative to it
    name, rest = find_command(shlex.split(line)[1:])
    command = COMMANDS[name]
    build_parser(command.load(), f"mmdit {name}", command.positional, command.config).parse_args(rest)


def test_paths_exist():
    for path in re.findall(r"\b(?:mmdit|configs|kernels|tests)/[\w./]+\w", README):
        if path != "mmdit/assets/scenes64/README.md" or "scenes64" in bundled_models():
            assert (ROOT / path).exists(), path


def test_first_paragraph_settles_the_names():
    first = README.split("\n\n")[1]
    assert "multimodal patch" in first
    assert "MMDiT" in first
    assert "multimodal-dit" in first


@needs_model
def test_results_are_those_of_the_report():
    card = CARD.read_text(encoding="utf-8")
    assert update(README, TABLES) == README, "run: python -m mmdit.cli.results"
    assert update(card, CARD_TABLES) == card, "run: python -m mmdit.cli.results"


def test_video_table():
    maps = {"depth": {"flicker": 1.234, "abs_rel": 0.02}, "segmentation": {"flicker": 2.0, "miou": None}}
    settings = {"num_scenes": 20, "num_frames": 48, "num_inference_steps": 1}
    table = video_table({"video": {"shared": maps}, "settings": settings})
    assert "| one noise for all | 1.23 | – | 0.0200 | – | – | – | 2.00% | – |" in table
    assert "20 camera paths of 48 frames through unseen scenes; 1 step" in table


def test_diversity_table():
    settings = {"condition": "depth", "num_images": 16, "num_maps": 8, "num_inference_steps": 25}
    made = {"distance": 0.203, "feature_distance": 0.06, "abs_rel": 0.0204}
    table = diversity_table({"images": made, "controls": {"other_map": {"abs_rel": 0.5}}, "settings": settings})
    assert "| RGB for one depth map |" in table
    assert "| made for it | 0.20 | 0.06 | 0.020 |" in table
    assert "| against another map | – | – | 0.500 |" in table
    assert "16 images for each of 8 unseen maps; 25 steps." in table


def test_lora_table():
    row = {"seconds": 0.0, "category": 1.0, "colour": 0.5, "distance": 0.123, "nearest": 0.2}
    report = dict.fromkeys(("words", "picture", "real_images", "copied_references"), row) | {
        "lora": {**row, "seconds": 47.6},
        "settings": {
            "subjects": ["a red torus"] * 4,
            "num_images": 16,
            "rank": 8,
            "max_steps": 99,
            "num_pictures": [5] * 4,
        },
    }
    table = lora_table(report)
    assert "| its picture | 0 | 1.00 | 0.50 | 0.12 | 0.20 |" in table
    assert "| a LoRA and its words | 48 | 1.00 | 0.50 | 0.12 | 0.20 |" in table
    assert (
        "4 unseen subjects, 16 pictures of each in each way; a LoRA of rank 8 is trained for 99 steps on 5 pictures."
        in table
    )


def test_prompts_table():
    one = {"category": 0.987, "colour": 0.5, "num_samples": 96}
    report = {
        "prompts": {"text": {"one": one}, "geometry": {"object_iou": 0.901}},
        "controls": {
            "shuffled_prompts": {"text": {"one": {"category": 0.1}}},
            "real_images": {"text": {"one": {"category": 1}}},
        },
        "settings": {"num_inference_steps": {"generation": 12}, "guidance_scale": 3.0},
    }
    table = prompts_table(report)
    assert "| one object | category | 0.99 | 0.10 | 1.00 |" in table
    assert "|  | object IoU | 0.90 | – | – |" in table
    assert (
        "96 prompts of each kind where the split has as many, of unseen scenes and subjects; 12 steps, guidance 3."
        in table
    )
    other = {"prompts": {"text": {"one": {"category": 0.25, "num_samples": 48}}}}
    table = prompts_table(report, {"theirs": other})
    assert "| asked for | measure | scenes64 | theirs | another prompt | real pictures |" in table
    assert "| one object | category | 0.99 | 0.25 | 0.10 | 1.00 |" in table
    assert "|  | object IoU | 0.90 | – | – | – |" in table
    assert "guidance 3. theirs: 48 prompts." in table


def test_generation_table():
    report = {
        "generation": {
            "frechet_distance": 18.25,
            "classifier_accuracy": 0.93,
            "consistency": {"depth_normal_angle": 8.04},
        },
        "controls": {
            "other_samples": {"frechet_distance": 2.0},
            "vae_only": {"consistency": {"depth_normal_angle": 7.8}},
        },
        "settings": {
            "num_samples": 2048,
            "num_inference_steps": {"generation": 10},
            "guidance_scale": 1.0,
            "internal_guidance_scale": 1.8,
        },
        "timing": {"seconds_per_image": {"generation": 0.1}},
    }
    guided = {
        "generation": {"frechet_distance": 12.0},
        "settings": {"num_inference_steps": 25, "guidance_scale": 2.0},
        "timing": {"seconds_per_image": {"generation": 0.7}},
    }
    table = generation_table(report, guided)
    assert "| generated from the categories | 18.2 | 0.930 | 8.0° | 0.10 |" in table
    assert "| with classifier-free guidance | 12.0 | – | – | 0.70 |" in table
    assert "| as many other real images | 2.0 | – | – | – |" in table
    assert "| the real ones through the VAE | – | – | 7.8° | – |" in table
    below = "10 steps of one evaluation, internal guidance 1.8, and 25 steps of two evaluations, guidance 2; one core."
    assert f"2,048 unseen scenes; {below}" in table


def test_results_table():
    report = {
        "understanding": {"depth": {"abs_rel": 0.01234}, "segmentation": {"object_iou": None}},
        "controls": {"shuffled_understanding": {"depth": {"abs_rel": 0.5}}},
        "settings": {"num_samples": 3, "split": "test", "num_inference_steps": {"understanding": 1, "generation": 25}},
    }
    table = results_table(report)
    assert "| RGB → depth | AbsRel | 0.012 | 0.500 |" in table
    assert "| depth → RGB | AbsRel of that RGB's depth | – | – |" in table
    assert "3 scenes of the split `test`; denoising steps: understanding 1, generation 25." in table
    assert put(put(README, "results", table), "results", table).count(table) == 1


def test_the_bundled_model_is_trained_on_with_its_own_encoders():
    (said,) = re.findall(r"`--model.pretrained (\w+)`, with its own encoders", README)
    prompts = read_yaml(ROOT / "configs" / "umm_scenes64.yaml")["prompts"]
    assert prompts["text_encoder"] == said
    assert "hidden_layer" not in prompts


@needs_model
def test_python_example_runs(tmp_path, monkeypatch):
    example, _ = PYTHON
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "torus.png").exists()


@needs_model
def test_example_of_prompts_runs():
    """Every word of it is one that the bundled model knows."""
    from mmdit import MultimodalDiTPipeline

    _, example = PYTHON
    pipe = MultimodalDiTPipeline.from_pretrained("scenes64")
    pipe.set_progress_bar_config(disable=True)
    exec(compile(example, "README.md", "exec"), {"pipe": pipe, "mask": np.ones((64, 64), bool)})  # of the first example


@needs_model
@pytest.mark.parametrize(
    "line", [line for line in COMMAND_LINES if line.startswith(("mmdit understand mmdit/assets", "mmdit env"))]
)
def test_quick_command_runs(line, tmp_path, monkeypatch, capsys):
    from mmdit.cli.main import main

    (tmp_path / "mmdit").symlink_to(ROOT / "mmdit")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out
