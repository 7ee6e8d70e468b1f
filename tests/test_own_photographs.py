"""A researcher's own photographs, 96 x 128, RGB and depth and no categories: the README's way from folders to a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.cli.main import main
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 96, 128


def _photographs(root: Path, count: int, seed: int) -> None:
    """A ball before a wall: smooth shades as JPEG, and its depth in millimetres as 16 bits."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for folder in ("rgb", "depth"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        column, row, radius = rng.integers(30, 98), rng.integers(30, 66), rng.integers(12, 28)
        ball = (x - column) ** 2 + (y - row) ** 2 < radius**2
        shade = np.stack([x * 1.5, y * 2, 255 - x], axis=-1) * rng.uniform(0.5, 1)
        rgb = np.where(ball[..., None], rng.integers(0, 256, 3), shade).astype(np.uint8)
        Image.fromarray(rgb).save(root / "rgb" / f"{index:02d}.jpg", quality=95)
        Image.fromarray(np.where(ball, 1500, 3000 + 20 * y).astype(np.uint16)).save(root / "depth" / f"{index:02d}.png")


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE with random weights that makes 24 x 32 latents of the photographs."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        in_channels=48, out_channels=48, block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False
    ).save_pretrained(folder)
    return folder


def test_the_whole_way(tmp_path, monkeypatch, vae_folder, capfd):
    monkeypatch.chdir(tmp_path)
    _photographs(tmp_path / "train", 8, seed=0)
    _photographs(tmp_path / "val", 3, seed=1)
    for split in ("train", "val"):
        folders = ["--rgb", f"{split}/rgb", "--depth", f"{split}/depth"]
        assert main(["data", "import", *folders, "--output", "data", "--split", split]) == 0
    assert "read as distances in metres" in capfd.readouterr().err
    assert json.loads(Path("data/dataset.json").read_text()).keys() == {"modalities", "depth_scale", "provenance"}
    assert main(["data", "check", "--data", "data"]) == 0
    assert main(["data", "encode", "--data", "data", "--output", "latents", "--vae", str(vae_folder)]) == 0

    # README's line, with its scenes' weights for four modalities; steps, sizes and pictures are fewer.
    train = ["train", "--config", str(ROOT / "configs/scenes64.yaml"), "--data.path", "latents", "--output", "run"]
    train += ["--model.size", "debug", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
    train += ["--preview.num_samples", "2", "--preview.num_inference_steps", "2", "--preview.num_measured", "2"]
    train += ["--trainer.validate_every", "2", "--trainer.checkpoint_every", "2"]
    assert main([*train, "--trainer.max_steps", "2"]) == 0
    assert (
        "objective.loss_weights names normal, segmentation: ignored, the data have rgb, depth" in capfd.readouterr().err
    )
    assert main([*train, "--trainer.max_steps", "4", "--resume", "auto"]) == 0
    assert _images_logged("run/logs") == {
        "previews/generated": (2 * HEIGHT, 2 * WIDTH),
        "previews/understood": (192, 512),
    }
    assert "understanding/depth/rmse" in _scalars_logged("run/logs")

    pipe = MultimodalDiTPipeline.from_pretrained("run/pipeline")
    assert (pipe.native_shape, pipe.native_size) == ((HEIGHT, WIDTH), WIDTH)
    assert pipe.transformer.config.sample_shape == [24, 32]
    out = pipe(num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    assert (out.rgb[0].size, out.depth.shape) == ((WIDTH, HEIGHT), (1, HEIGHT, WIDTH))

    common = ["--model", "run/pipeline", "--device", "cpu"]
    Image.open("val/rgb/00.jpg").resize((200, 150)).save("another.png")
    assert main(["understand", "another.png", "val/rgb/01.jpg", *common]) == 0
    assert np.load("outputs/understand/another/depth.npy").shape == (150, 200)
    assert np.load("outputs/understand/01/depth.npy").shape == (HEIGHT, WIDTH)
    one_step = ["--num_inference_steps", "1"]
    assert main(["generate", *common, *one_step]) == 0
    assert Image.open("outputs/generate/unconditional_0/rgb.png").size == (WIDTH, HEIGHT)
    assert main(["evaluate", *common, "--data", "data", "--split", "val", "--output", "report.json", *one_step]) == 0
    report = json.loads(Path("report.json").read_text())
    assert report["understanding"]["depth"]["abs_rel"] > 0
    assert report["generation"]["category_accuracy"] is None
    capfd.readouterr()
    assert main(["generate", "dog", *common]) == 2
    assert "class label 'dog': this model has no classes" in capfd.readouterr().err


def _events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for file in sorted(Path(folder).rglob("events*")):
        yield EventAccumulator(str(file)).Reload()


def _images_logged(folder):
    """Tag -> (height, width) of its last image."""
    found = {}
    for events in _events(folder):
        for tag in events.Tags()["images"]:
            last = events.Images(tag)[-1]
            found[tag] = (last.height, last.width)
    return found


def _scalars_logged(folder):
    return {tag for events in _events(folder) for tag in events.Tags()["scalars"]}
