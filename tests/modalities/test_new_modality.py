"""What the README promises of a new modality, end to end: its own lines are run, and nothing else is told of the modality."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.modalities import CODECS, MODALITIES

ROOT = Path(__file__).resolve().parents[2]
SIZE = 16


@pytest.fixture(scope="module", autouse=True)
def new_modalities() -> Iterator[None]:
    """Run the README's block; afterwards the tables are as they were."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## A new modality")[1]
    block = re.findall(r"^```py\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[0]
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 15
    modalities, codecs = dict(MODALITIES), dict(CODECS)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    yield
    for table, before in ((MODALITIES, modalities), (CODECS, codecs)):
        table.clear()
        table.update(before)


def albedo(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def edges(rng: np.random.Generator) -> np.ndarray:
    return (rng.random((SIZE, SIZE)) > 0.7).astype(np.float32)


@pytest.fixture(scope="module", params=[albedo, edges], ids=["albedo", "edges"])
def kind(request: pytest.FixtureRequest) -> Callable[[np.random.Generator], np.ndarray]:
    return request.param


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, kind: Callable[[np.random.Generator], np.ndarray]) -> Path:
    """A dataset of RGB, depth and the new kind, and a tiny autoencoder."""
    from diffusers import AutoencoderKL

    from mmdit.data.writer import DatasetWriter

    folder = tmp_path_factory.mktemp(kind.__name__)
    rng = np.random.default_rng(0)
    names = ["rgb", "depth", kind.__name__]
    writer = DatasetWriter(folder / "data", "train")
    for index in range(4):
        writer.save("rgb", f"{index}", rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        writer.save("depth", f"{index}", rng.uniform(1, 9, (SIZE, SIZE)))
        writer.save(kind.__name__, f"{index}", kind(rng))
    writer.write_manifest([(f"{index}", "cone") for index in range(4)], names)
    description = {"modalities": names, "categories": ["cone"], "depth_scale": 0.001, "licence": "", "provenance": {}}
    (folder / "data" / "dataset.json").write_text(json.dumps(description))
    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=12,
        out_channels=12,
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder / "vae")
    return folder


def run(*arguments: object) -> int:
    from mmdit.cli.main import main

    return main([str(argument) for argument in arguments])


def test_end_to_end(work, kind, monkeypatch, capsys):
    name = kind.__name__
    monkeypatch.chdir(work)
    assert run("data", "check", "--data", "data") == 0
    assert run("data", "encode", "--data", "data", "--output", "latents", "--vae", "vae") == 0
    config = ["--config", ROOT / "configs/debug.yaml", "--alignment", "null", "--data.path", "latents"]
    steps = ["--trainer.max_steps", 2, "--trainer.checkpoint_every", 2, "--trainer.validate_every", 0]
    quick = ["--data.batch_size", 4, "--output", "run", "--data.val_split", "null"]
    assert run("train", *config, *steps, *quick) == 0, capsys.readouterr().err
    model = ["--model", "run/pipeline", "--num_inference_steps", 1]

    for _ in range(2):  # a repeated request replaces its own result
        assert run("generate", "cone", *model, "--output", "made") == 0, capsys.readouterr().err
    made = work / "made" / "cone_0"
    from mmdit import MultimodalDiTPipeline

    pipe = MultimodalDiTPipeline.from_pretrained("run/pipeline")
    codec = pipe.codecs[name]
    assert codec.file_names() <= {path.name for path in made.iterdir()}
    given = made / f"{name}.png"
    saved = codec.read(given).values
    assert codec.check(codec.read(given)) == []

    for _ in range(2):
        assert run("condition", "--given", f"{name}={given}", *model, "--output", "given") == 0, capsys.readouterr().err
    result = work / "given" / f"cone_0_from_{name}_0"
    assert json.loads((result / "metadata.json").read_text())["conditions"].keys() == {name}
    np.testing.assert_allclose(codec.read(result / f"{name}.png").values, saved, atol=1e-4)
    with Image.open(result / "grid.png") as grid:
        assert grid.width > 3 * 128

    out = pipe(conditions={name: saved}, num_inference_steps=1, output_type="np")
    assert codec.from_output(out[name])[0].shape == saved.shape
    assert len(out.rgb) == 1

    evaluate = ["--split", "train", "--num_samples", 3, "--output", "report.json"]
    assert run("evaluate", "--data", "data", *model, *evaluate) == 0, capsys.readouterr().err
    report = json.loads((work / "report.json").read_text())
    metric = {"albedo": "psnr", "edges": "absolute_error"}[name]
    for part in (report["understanding"], report["conditioning"], report["controls"]["vae_only"]):
        assert part[name]["num_images"] == 3
        assert np.isfinite(part[name][metric])
    assert "abs_rel" in report["understanding"]["depth"]
    if name == "edges":
        assert 0 < report["understanding"][name][metric] < 1


def test_a_bad_file_of_a_new_kind_is_found(work, kind, monkeypatch, capsys):
    name = kind.__name__
    monkeypatch.chdir(work)
    path = work / "data" / "train" / name / "1.png"
    good = path.read_bytes()
    path.write_bytes(good[:-30])
    assert run("data", "check", "--data", "data") == 2
    assert f"train/{name}/1.png: " in capsys.readouterr().out
    path.write_bytes(good)
    assert run("data", "check", "--data", "data") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--given", "edgs=rgb.png"), "unknown modality 'edgs': did you mean "),
        (("--given", "edges=nowhere.png"), "--given edges=nowhere.png: no such file"),
        (("--given", "edges=."), "is a folder; give a file"),
        (("--given", "edges"), "--given 'edges': give NAME=FILE"),
        (("--given", "rgb=rgb.png", "--given", "rgb=rgb.png"), "rgb is given twice"),
        (("--rgb", "rgb.png", "--given", "rgb=rgb.png"), "rgb is given twice, also by --rgb rgb.png"),
    ],
)
def test_wrong_use_of_given(tiny_pipeline_dir, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("rgb.png")
    assert run("condition", *arguments, "--model", tiny_pipeline_dir) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
