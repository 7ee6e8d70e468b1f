"""Folders, datasets, latents and runs of version 0.1.0 are read, and give what that version gave."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

FOLDER = Path(__file__).with_name("first_version")


@pytest.fixture(scope="module")
def pipe():
    from mmdit import MultimodalDiTPipeline

    pipe = MultimodalDiTPipeline.from_pretrained(FOLDER / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "outputs.safetensors")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _check_maps(out, expected: dict[str, torch.Tensor], task: str) -> None:
    """Within 1e-4, but for pixels on an edge: a label that a rounding error flips, 8 bits that round the other way."""
    for name in ("depth", "normal"):
        torch.testing.assert_close(out[name][:, ::4, ::4], expected[f"{task}.{name}"], atol=1e-4, rtol=0)
    rgb = (out.rgb[..., ::4, ::4] - expected[f"{task}.rgb"]).abs()
    assert float(rgb.max()) <= 1 / 255 + 1e-4
    assert float((rgb > 1e-4).float().mean()) < 0.002
    labels = out.segmentation[:, ::4, ::4] != expected[f"{task}.segmentation"]
    assert float(labels.float().mean()) < 0.002


def test_generation(pipe, expected):
    out = pipe(
        class_labels=["torus", "cone"],
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=_generator(),
        output_type="pt",
    )
    _check_maps(out, expected, "generate")


def test_understanding(pipe, expected):
    image = Image.fromarray((np.arange(64 * 64 * 3).reshape(64, 64, 3) % 251).astype(np.uint8))
    out = pipe(conditions={"rgb": image}, num_inference_steps=1, generator=_generator(), output_type="pt")
    _check_maps(out, expected, "understand")


def test_conditioning(pipe, expected):
    depth = np.linspace(1, 5, 64 * 64, dtype=np.float32).reshape(64, 64)
    out = pipe(
        conditions={"depth": depth},
        class_labels="torus",
        num_inference_steps=2,
        generator=_generator(),
        output_type="latent",
    )
    torch.testing.assert_close(out.latents, expected["condition.latents"], atol=1e-4, rtol=1e-4)


def test_dataset_is_sound():
    from mmdit.data.check import check_dataset

    report = check_dataset(FOLDER / "dataset")
    assert report.problems == ()
    assert report.num_samples == {"train": 6}


def test_latents_are_those_of_the_dataset(tmp_path):
    """Encoding the dataset anew gives the stored moments, a missing modality included."""
    from mmdit.cli.main import main
    from mmdit.data.latents import LatentShards

    shutil.copytree(FOLDER / "latents", tmp_path / "latents")
    stored = LatentShards(tmp_path / "latents", "train", ["rgb", "depth", "normal", "segmentation"])
    command = ["data", "encode", "--mirrored", "false", "--data", str(FOLDER / "dataset")]
    assert main([*command, "--vae", str(FOLDER / "pipeline" / "vae"), "--output", str(tmp_path / "new")]) == 0
    new = LatentShards(tmp_path / "new", "train", ["rgb", "depth", "normal", "segmentation"])
    assert len(stored) == len(new) == 6
    for i in range(6):
        assert stored[i]["id"] == new[i]["id"]
        assert stored[i]["category"] == new[i]["category"]
        assert torch.equal(stored[i]["present"], new[i]["present"])
        present = stored[i]["present"]
        torch.testing.assert_close(stored[i]["moments"][present], new[i]["moments"][present], atol=2e-3, rtol=2e-3)
    assert not stored[3]["present"].all()


def test_run_goes_on(tmp_path):
    """Steps 3 and 4 of a run that version 0.1.0 began end with the weights of the run that it ended itself."""
    from mmdit.cli.main import main

    shutil.copytree(FOLDER / "latents", tmp_path / "latents")
    shutil.copytree(FOLDER / "pipeline" / "vae", tmp_path / "latents" / "vae")
    shutil.copytree(FOLDER / "run", tmp_path / "run")
    command = ["train", "--config", str(tmp_path / "run" / "config.yaml"), "--resume", "auto"]
    assert main([*command, "--data.path", str(tmp_path / "latents"), "--output", str(tmp_path / "run")]) == 0
    after = load_file(tmp_path / "run" / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    expected = load_file(FOLDER / "run_after_4_steps.safetensors")
    assert after.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, atol=1e-4, rtol=0)
