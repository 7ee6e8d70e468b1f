"""The autoencoder and the teacher, on a miniature dataset of real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from mmdit.errors import UserError
from mmdit.latents.scene_teacher import SceneTeacher
from mmdit.training.config import AutoencoderConfig, DataConfig, OptimizerConfig, TeacherConfig
from mmdit.training.recipes import TrainingConfig, build_run
from mmdit.training.run import fit

Configure = Callable[..., TrainingConfig]
CLASSES = [
    {"id": 0, "name": "floor", "color": [255, 0, 0]},
    {"id": 1, "name": "wall", "color": [0, 255, 0]},
    {"id": 2, "name": "box", "color": [0, 0, 255]},
]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    rows = []
    for name in ("rgb", "depth", "normal", "segmentation"):
        (root / "train" / name).mkdir(parents=True)
    for index in range(4):
        normals = np.zeros((16, 16, 3), np.uint8) + np.array([128, 128, 255], np.uint8)
        arrays = {
            "rgb": generator.integers(0, 255, (16, 16, 3), np.uint8),
            "depth": generator.integers(1000, 9000, (16, 16)).astype(np.uint16),
            "normal": normals,
            "segmentation": generator.integers(0, 3, (16, 16)).astype(np.uint8),
        }
        for name, array in arrays.items():
            Image.fromarray(array).save(root / "train" / name / f"{index}.png")
        rows.append({"id": str(index), "category": "box", **{name: f"{name}/{index}.png" for name in arrays}})
    del rows[0]["depth"]
    (root / "train" / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    info = {
        "modalities": ["rgb", "depth", "normal", "segmentation"],
        "categories": ["box"],
        "segmentation_classes": CLASSES,
    }
    (root / "dataset.json").write_text(json.dumps(info))
    return root


def test_autoencoder_trains_and_exports(tmp_path: Path, dataset: Path, tiny_config: Configure) -> None:
    autoencoder = AutoencoderConfig(
        unshuffle=4,
        block_out_channels=[64],
        settings={"kl_weight": 1e-4},
        codecs={"depth": {"space": "depth", "quantiles": [0.0, 1.0]}},
    )
    config = tiny_config(
        max_steps=3,
        recipe="autoencoder",
        autoencoder=autoencoder,
        data=DataConfig(str(dataset), batch_size=2, val_split=None),
    )
    run = build_run(config)
    before = run.module.network.decoder.conv_in.weight.detach().clone()
    assert run.module.codec.modalities["depth"].settings["space"] == "depth"
    folder = fit(run, config.trainer, config.ema, tmp_path / "run", None)
    vae = AutoencoderKL.from_pretrained(folder)
    assert vae.config.in_channels == 48
    assert not torch.equal(before, vae.decoder.conv_in.weight)


def test_missing_modality_is_no_image_for_the_autoencoder(dataset: Path, tiny_config: Configure) -> None:
    config = tiny_config(recipe="autoencoder", data=DataConfig(str(dataset), batch_size=4, val_split=None))
    config.autoencoder = AutoencoderConfig(block_out_channels=[32])
    run = build_run(config)
    batch = next(iter(run.data.train_dataloader()))
    module = run.module.eval()
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    batch["depth"][~batch["present"][:, 1]] = 7.0
    again = module.losses(batch, torch.Generator().manual_seed(0))
    assert not batch["present"].all()
    assert torch.equal(losses["loss"], again["loss"])


def test_teacher_trains_and_exports(tmp_path: Path, dataset: Path, tiny_config: Configure) -> None:
    for path in dataset.glob("train/manifest.jsonl"):  # the teacher needs all three
        path.write_text("\n".join(path.read_text().splitlines()[1:]))
    config = tiny_config(
        max_steps=3,
        recipe="teacher",
        teacher=TeacherConfig(patch_size=8, hidden_size=16, depth=1, num_heads=2),
        data=DataConfig(str(dataset), batch_size=2, val_split=None),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3),
    )
    folder = fit(build_run(config), config.trainer, config.ema, tmp_path / "run", None)
    teacher = SceneTeacher.from_pretrained(folder)
    assert teacher.features(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 16)
    config.model.modalities = ["rgb", "depth"]
    with pytest.raises(UserError, match="has no normal"):
        build_run(config)
