"""Small ablations, whole: trained, interrupted, gone on with, measured and drawn."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from mmdit.cli.common.ablation_results import TIMES, read_rows
from mmdit.cli.common.ablation_table import Variant
from mmdit.cli.demo import EXAMPLES
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.encoders.precompute import encode_dataset
from mmdit.storage.json_object import flatten, read_object
from mmdit.storage.yaml_text import read_yaml

BASE = """
recipe: transformer
model: {size: debug}
data: {batch_size: 4, train_split: test, val_split: null}
objective: {prediction: sample, timesteps: mixed, pure_noise_share: 0.5}
optimizer: {name: muon, lr: 1.0e-2, warmup_steps: 1, schedule: linear}
trainer: {checkpoint_every: 1, validate_every: 0, log_every: 1, accelerator: cpu, devices: 1}
ema: {decay: 0.9}
preview: {num_samples: 0, num_measured: 0}
"""
TABLE = """
base: base.yaml
samples: 32
points: 2
variants:
  muon: {title: the recipe}
  adamw: {title: AdamW, share: 0.5, options: {optimizer.name: adamw}, measures: [understanding, generation_frechet]}
"""
PROMPTED = """
base: base.yaml
samples: 16
points: 1
options:
  model.block: cross
  model.conditioner: tiue
  prompts.path: {scenes}
  prompts.text_encoder: {clip}
variants:
  text: {{title: text alone, share: 0.5, options: {{prompts.plain_share: 1.0}}, measures: [prompts.text]}}
  subjects: {{title: then subjects, share: 0.5, after: text, measures: [prompts]}}
"""
WEIGHTS = "pipeline/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def latents(tiny_pipeline_dir, tmp_path_factory):
    """The ten example scenes by a tiny VAE; they are measured on, too."""
    vae = AutoencoderKL.from_pretrained(tiny_pipeline_dir / "vae")
    folder = tmp_path_factory.mktemp("latents") / "latents"
    encode_dataset(
        EXAMPLES, folder, vae.eval(), modalities_from_dataset(read_dataset_info(EXAMPLES)), say=lambda text: None
    )
    return folder


@pytest.fixture
def prompted(tmp_path, tiny_pipeline_dir, prompt_scenes, clip_folder):
    """A table of two stages, on captions and pictures; it is measured where it is trained."""
    vae = AutoencoderKL.from_pretrained(tiny_pipeline_dir / "vae")
    modalities = modalities_from_dataset(read_dataset_info(prompt_scenes))
    encode_dataset(prompt_scenes, tmp_path / "latents", vae.eval(), modalities, say=lambda text: None)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "table.yaml").write_text(PROMPTED.format(scenes=prompt_scenes, clip=clip_folder))
    return ("ablate", "--table", "table.yaml", "--data", "latents", "--scenes", prompt_scenes, "--num_measured", 2,
            "--num_inference_steps", 2, "--output", "out", "--num_prompts", 3)  # fmt: skip


@pytest.fixture
def command(tmp_path, latents):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "table.yaml").write_text(TABLE)
    return ("ablate", "--table", tmp_path / "table.yaml", "--data", latents, "--scenes", EXAMPLES, "--num_measured", 3,
            "--num_inference_steps", 1, "--output", tmp_path / "out")  # fmt: skip


def without_times(path):
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def wait_for_rows(path: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while not path.is_file() or len(path.read_text().splitlines()) <= count:
        assert time.monotonic() < deadline, "no row was written"
        time.sleep(0.02)


@pytest.mark.slow
def test_interrupted_and_gone_on_with(mmdit, command, tmp_path, processes):
    """One uninterrupted ablation, and one stopped by TERM and then killed; the first equals training and evaluating by hand."""
    result = mmdit(*command, "--seeds", 0, 1)
    assert result.code == 0, result.err
    out = tmp_path / "out"
    rows = read_rows(out / "ablation.csv")
    assert [(row["variant"], row["seed"], row["step"], row["samples"], row["max_steps"]) for row in rows] == [
        *(("muon", seed, step, step * 4, 8) for seed in (0, 1) for step in (4, 8)),
        *(("adamw", seed, step, step * 4, 4) for seed in (0, 1) for step in (2, 4)),
    ]
    assert {name.split("_")[0] for name in rows[0].keys() - {*TIMES, "title", "max_steps"}} > {
        "conditioning",
        "generation",
    }
    assert not [name for name in rows[-1] if name.startswith(("conditioning", "generation_category"))]
    assert {row["title"] for row in rows} == {"the recipe", "AdamW"}
    for earlier, later in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < earlier["processor_seconds"] < later["processor_seconds"]
        assert 0 < earlier["wall_seconds"] < later["wall_seconds"]
    assert Image.open(out / "ablation.png").width > 300
    report = (out / "ablation.md").read_text()
    assert "| the recipe | 2 | 32 |" in report
    assert "| AdamW | 2 | 16 |" in report
    assert not list(out.glob("runs/*/checkpoints"))
    assert not list(out.glob("runs/*/point"))

    # The same as the commands that it stands for.
    again = mmdit(
        "train", "--config", "base.yaml", "--output", "run", "--data.path", command[4], "--trainer.max_steps", 8
    )
    assert again.code == 0, again.err
    ours, theirs = load_file(out / "runs/muon_s0" / WEIGHTS), load_file(tmp_path / "run" / WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = mmdit("evaluate", "--model", "run/pipeline", "--data", EXAMPLES, "--output", "report.json", "--num_samples", 3,
                  "--num_inference_steps", 1, "--teacher", Path(EXAMPLES).parent / "scenes64/teacher")  # fmt: skip
    assert again.code == 0, again.err
    found = read_object(tmp_path / "report.json")
    for column, value in {
        "understanding_depth_abs_rel": found["understanding"]["depth"]["abs_rel"],
        "understanding_segmentation_miou": found["understanding"]["segmentation"]["miou"],
        "generation_frechet_distance": found["generation"]["frechet_distance"],
    }.items():
        assert rows[1][column] == pytest.approx(value, rel=1e-4), column

    words = [str(word) for word in (*command[:-1], tmp_path / "stopped")]
    table = tmp_path / "stopped/ablation.csv"
    child = processes.start(words)
    wait_for_rows(table, 1)
    os.kill(child.pid, signal.SIGTERM)
    assert processes.wait(child) == 0, child.text
    assert "stopped: the same command goes on" in child.text
    assert len(read_rows(table)) < 4
    child = processes.start(words)
    wait_for_rows(table, 3)
    os.kill(child.pid, signal.SIGKILL)
    assert processes.wait(child) == -signal.SIGKILL
    assert len(read_rows(table)) < 4
    kept = table.read_bytes().splitlines()
    result = mmdit(*words)
    assert result.code == 0, result.err
    assert without_times(table) == [row for row in without_times(out / "ablation.csv") if row["seed"] == "0"]
    assert "muon, seed 0: is measured, and kept" in result.err  # a finished one is not run again
    assert set(kept) <= set(table.read_bytes().splitlines())

    # Another recipe under a name that is there is refused, and other scenes.
    result = mmdit(*command, "--samples", 64)
    assert result.code == 2
    assert "variant 'muon' of another request (trainer.max_steps was 8, now 16): give it another name" in result.error
    result = mmdit(*command, "--num_measured", 2)
    assert result.code == 2
    assert "num_measured was 3, now 2" in result.error


@pytest.mark.slow
def test_stopped_between_the_last_point_and_the_export(mmdit, command, tmp_path):
    """What such a run leaves: all its points, checkpoints, and no model."""
    one = (*command, "--variants", "adamw", "--samples", 8)
    assert mmdit(*one).code == 0
    folder = tmp_path / "out/runs/adamw_s0"
    first, rows = load_file(folder / WEIGHTS), (tmp_path / "out/ablation.csv").read_bytes()
    assert mmdit("train", "--config", folder / "config.yaml").code == 0
    shutil.rmtree(folder / "pipeline")
    assert mmdit(*one).code == 0
    again = load_file(folder / WEIGHTS)
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert (tmp_path / "out/ablation.csv").read_bytes() == rows
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_two_stages_on_prompts(mmdit, prompted, prompt_scenes, tmp_path):
    """The second begins with what the first has learned, and its samples and times are those of both."""
    result = mmdit(*prompted)
    assert result.code == 0, result.err
    first, second = read_rows(tmp_path / "out/ablation.csv")
    assert [(row["variant"], row["step"], row["samples"]) for row in (first, second)] == [
        ("text", 2, 8),
        ("subjects", 2, 16),
    ]
    assert all(0 < first[name] < second[name] for name in TIMES)
    runs = tmp_path / "out/runs"
    pretrained = read_yaml(runs / "subjects_s0/config.yaml")["model"]["pretrained"]
    assert (tmp_path / pretrained).samefile(runs / "text_s0/pipeline")
    seeds = [read_yaml(runs / name / "config.yaml")["seed"] for name in ("text_s0", "subjects_s0")]
    assert seeds[0] == 0 != seeds[1], "it meets other samples, times and noise than the first"
    assert read_object(tmp_path / "out/ablation.json")["settings"]["num_prompts"] == 3
    measured = {name for name in second if name.startswith("prompts.")}
    assert {name for name in first if name.startswith("prompts.")} == {
        name for name in measured if name.startswith("prompts.text.")
    }
    assert {"prompts.subject.copy_rate", "prompts.subjects.two.all"} < measured
    assert not [name for name in second if name.startswith("understanding")]
    report = (tmp_path / "out/ablation.md").read_text()
    assert "| then subjects | 1 | 16 |" in report
    assert "AbsRel" not in report

    again = mmdit("evaluate", "--model", runs / "subjects_s0/pipeline", "--data", prompt_scenes, "--num_samples", 2,
                  "--num_inference_steps", 2, "--num_prompts", 3, "--output", "report.json")  # fmt: skip
    assert again.code == 0, again.err
    found = flatten({"prompts": read_object(tmp_path / "report.json")["prompts"]})
    for name in measured:
        assert second[name] == pytest.approx(math.nan if found[name] is None else found[name], rel=1e-4, nan_ok=True), (
            name
        )

    table = tmp_path / "table.yaml"
    text = table.read_text()
    table.write_text(text.replace("plain_share: 1.0", "plain_share: 0.9"))
    result = mmdit(*prompted, "--variants", "subjects")
    assert "variant 'text' of another request (prompts.plain_share was 1.0, now 0.9)" in result.error
    table.write_text(text)
    shutil.rmtree(runs / "text_s0")
    result = mmdit(*prompted, "--variants", "subjects", "--seeds", 1)
    assert result.code == 2
    assert (
        "variant 'subjects' comes after 'text', which is not trained with seed 1: give --variants text subjects"
        in result.error
    )


def test_a_stage_has_the_model_that_it_begins_with(mmdit, prompted, tmp_path):
    table = tmp_path / "table.yaml"
    table.write_text(table.read_text().replace("after: text,", "after: text, options: {model.depth: 3},"))
    result = mmdit(*prompted)
    assert result.code == 2
    assert (
        "variant 'subjects': comes after 'text', whose model.depth is None, not 3: give both the same" in result.error
    )


def test_variants_of_prompts_alone_need_prompts(mmdit, prompted):
    result = mmdit(*prompted, "--num_prompts", 0)
    assert result.code == 2
    assert "--num_prompts is 0, and variant 'text' is measured on prompts alone: give a number" in result.error


def test_a_detector_for_nothing_is_refused(mmdit, command):
    result = mmdit(*command, "--detector", "x")
    assert result.code == 2
    assert "--detector x: judges prompts, and --num_prompts is 0" in result.error


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--scenes", EXAMPLES, f"--num_prompts is 3: {EXAMPLES / 'test'}: has no prompts.jsonl"),
        ("--detector", "nowhere", "nowhere"),
    ],
)
def test_prompts_that_cannot_be_measured(mmdit, prompted, tmp_path, option, value, expected):
    result = mmdit(*prompted, option, value)
    assert result.code == 2
    assert expected in result.error
    assert not (tmp_path / "out/runs").exists()


def test_a_measure_may_be_named_by_its_beginning():
    assert Variant("a", "A", 1.0, {}, ("under",)).tasks == ["understanding"]
    assert Variant("a", "A", 1.0, {}).tasks == ["understanding", "conditioning", "generation", "prompts"]
    assert Variant("a", "A", 1.0, {}, ("prompts.text",)).tasks == ["prompts"]


VARIANTS = TABLE.partition("variants:")[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            TABLE.replace("optimizer.name", "optimizer.nam"),
            "variant 'adamw': unknown option '--optimizer.nam': did you mean",
        ),
        (
            TABLE.replace("name: adamw", "name: adam"),
            "variant 'adamw': unknown optimizer.name 'adam': did you mean 'adamw'",
        ),
        (TABLE.replace("optimizer.name: adamw", "seed: 3"), "seed is said by 'mmdit ablate' itself"),
        (TABLE.replace("adamw: {", "muon: {"), "key 'muon' stands twice"),
        (TABLE.replace("title: AdamW", "title: the recipe"), "two variants have the title 'the recipe'"),
        (TABLE.replace(VARIANTS, " {}"), "has no variants: give at least one"),
        (TABLE.replace("share: 0.5", "share: 2"), "share is 2: give a number above 0, at most 1"),
        (
            TABLE.replace("share: 0.5", "share: 0.05"),
            "--samples is 32: variant 'adamw' takes 4 a step: give at least 80",
        ),
        (TABLE.replace("optimizer.name: adamw", "trainer.max_hours: 1"), "trainer.max_hours is 1: leave it out"),
        (TABLE.replace("measures", "mesures"), "unknown key 'mesures': did you mean 'measures'"),
        (TABLE.replace("generation_frechet", "generation_fid"), "unknown measure 'generation_fid'"),
        (TABLE.replace("adamw: {", "../adamw: {"), "its name is that of a folder"),
        (TABLE.replace("share: 0.5", "after: adamw"), "after is 'adamw': give a variant above it, of ['muon']"),
        (TABLE.replace("share: 0.5", "after: [muon]"), "give a variant's name"),
        (TABLE.replace("base.yaml", "nowhere.yaml"), "base is 'nowhere.yaml'"),
        (TABLE.replace("samples: 32", "samples: many"), "samples is 'many': give a whole number"),
        ("- 3\n", "give keys with values, of base, samples"),
    ],
)
def test_bad_tables(mmdit, command, tmp_path, text, expected):
    (tmp_path / "table.yaml").write_text(text)
    result = mmdit(*command)
    assert result.code == 2
    assert expected in result.error
    assert "table.yaml" in result.error or "--samples" in result.error
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data", "nowhere"), "--data nowhere: no such folder"),
        (("--scenes", "nowhere"), "--scenes nowhere: no such folder"),
        (("--table", "nowhere.yaml"), "nowhere.yaml"),
        (("--variants", "moun"), "unknown variant 'moun': did you mean 'muon'"),
        (("--seeds", -1), "--seeds is -1: give whole numbers from 0"),
        (("--seeds", "x"), "--seeds"),
        (("--teacher", "nowhere"), "teacher 'nowhere' is neither a folder nor a timm model"),
        (("--split", "train"), "train"),
    ],
)
def test_what_is_refused(mmdit, command, arguments, expected):
    result = mmdit(*command, *arguments)
    assert result.code == 2
    assert expected in result.error
