"""Recipes that read files: autoencoder, teacher, and a transformer on encoded latents with a teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.encoders.precompute import encode_dataset
from mmdit.encoders.scene_detector import SceneDetector
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import (
    AlignmentConfig,
    AutoencoderConfig,
    DataConfig,
    DetectorConfig,
    ModelConfig,
    OptimizerConfig,
    TeacherConfig,
    TrainingConfig,
)
from mmdit.training.recipes import build_run
from mmdit.training.run import fit

Configure = Callable[..., TrainingConfig]
MakeDataset = Callable[..., Path]


def test_autoencoder_trains_and_exports(tmp_path: Path, make_dataset: MakeDataset, tiny_config: Configure) -> None:
    autoencoder = AutoencoderConfig(
        block_out_channels=[64],
        settings={"kl_weight": 1e-4},
        codecs={"depth": {"space": "depth", "quantiles": [0.0, 1.0]}},
    )
    data = DataConfig(str(make_dataset()), batch_size=2, val_split=None)
    config = tiny_config(max_steps=3, recipe="autoencoder", autoencoder=autoencoder, data=data)
    run = build_run(config)
    before = run.module.network.decoder.conv_in.weight.detach().clone()
    assert run.module.codec.modalities["depth"].settings["space"] == "depth"
    folder = fit(run, config.trainer, config.ema, tmp_path / "run", None)
    vae = AutoencoderKL.from_pretrained(folder)
    assert vae.config.in_channels == 48
    assert not torch.equal(before, vae.decoder.conv_in.weight)


def test_missing_modality_is_no_image_for_the_autoencoder(make_dataset: MakeDataset, tiny_config: Configure) -> None:
    def lose_a_depth(rows: list[dict[str, Any]]) -> None:
        del rows[0]["depth"]

    data = DataConfig(str(make_dataset(4, edit_rows=lose_a_depth)), batch_size=4, val_split=None)
    autoencoder = AutoencoderConfig(block_out_channels=[32])
    run = build_run(tiny_config(recipe="autoencoder", data=data, autoencoder=autoencoder))
    batch = next(iter(run.data.train_dataloader()))
    module = run.module.eval()
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    assert not batch["present"].all()
    batch["depth"][~batch["present"][:, 1]] = 7.0
    again = module.losses(batch, torch.Generator().manual_seed(0))
    assert torch.equal(losses["loss"], again["loss"])


def test_missing_picture_is_none_for_the_image_encoder(
    prompt_folders: Any, tiny_config: Configure, tmp_path: Path
) -> None:
    """It is neither measured, nor among the pictures whose words are kept."""
    root = Path(shutil.copytree(prompt_folders.data, tmp_path / "data"))
    manifest = root / "train/manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()][:4]
    del rows[1]["rgb"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(str(root), batch_size=4, val_split=None)
    run = build_run(tiny_config(recipe="image_encoder", model=ModelConfig(pretrained="scenes64"), data=data))
    module, batch = run.module.eval(), run.data.train.read_batch(range(8))  # mirrored ones too
    assert batch["present"][:, 0].tolist() == [True, False, True, True] * 2
    shown = batch["rgb"][batch["present"][:, 0]]
    torch.testing.assert_close(module.network.mean, module.network.words(shown).mean(dim=0))
    with torch.no_grad():
        module.network.pseudo_word[-1].weight.mul_(1.1)
    losses = module.losses(batch, torch.Generator())
    batch["rgb"][1] = 0.7
    assert torch.equal(losses["loss"], module.losses(batch, torch.Generator())["loss"])
    words, before = (
        each.words(torch.cat([shown, batch["crops"]])) for each in (module.network, module.objective.before)
    )
    torch.testing.assert_close(losses["kept"], (words - before).square().mean() / module.network.std.square())
    for row in rows:
        row.pop("rgb", None)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"data\.path .*data: none of its first 8 samples has rgb"):
        build_run(tiny_config(recipe="image_encoder", model=ModelConfig(pretrained="scenes64"), data=data))


def test_teacher_trains_and_exports(tmp_path: Path, make_dataset: MakeDataset, tiny_config: Configure) -> None:
    config = tiny_config(
        max_steps=3,
        recipe="teacher",
        teacher=TeacherConfig(patch_size=8, hidden_size=16, depth=1, num_heads=2),
        data=DataConfig(str(make_dataset()), batch_size=2, val_split=None),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3),
    )
    folder = fit(build_run(config), config.trainer, config.ema, tmp_path / "run", None)
    teacher = SceneTeacher.from_pretrained(folder)
    assert teacher.features(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 16)
    config.model.modalities = ["rgb", "depth"]
    with pytest.raises(UserError, match="has no normal"):
        build_run(config)


def test_detector_trains_and_exports(tmp_path: Path, make_dataset: MakeDataset, tiny_config: Configure) -> None:
    config = tiny_config(
        max_steps=3,
        recipe="detector",
        model=ModelConfig(modalities=["rgb", "segmentation"]),
        detector=DetectorConfig(patch_size=2, channels=[8, 8], blocks=[1, 1]),
        data=DataConfig(str(make_dataset()), batch_size=2, val_split=None),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3),
    )
    folder = fit(build_run(config), config.trainer, config.ema, tmp_path / "run", None)
    detector = SceneDetector.from_pretrained(folder)
    assert detector.labels == ("floor", "wall", "torus")
    assert detector(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    config.detector.patch_size = 32
    with pytest.raises(UserError, match=r"a multiple of 64: those in .* are 16 x 16"):
        build_run(config)
    config.model.modalities = ["rgb", "depth"]
    with pytest.raises(UserError, match="has no segmentation"):
        build_run(config)


def test_transformer_on_encoded_latents(tmp_path: Path, make_dataset: MakeDataset, tiny_config: Configure) -> None:
    """Features that are stored and features computed in each step give the same alignment loss."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=48, out_channels=48, block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False
    )
    teacher = SceneTeacher(2, 3, image_size=16, hidden_size=8, depth=1, num_heads=2).eval().requires_grad_(False)
    teacher.save_pretrained(tmp_path / "teacher")
    root, latents = make_dataset(), tmp_path / "latents"
    modalities = modalities_from_dataset(read_dataset_info(root))
    encode_dataset(root, latents, vae.eval(), modalities, teacher=teacher, say=lambda text: None)
    data = DataConfig(str(latents), batch_size=4, val_split=None)
    stored = AlignmentConfig(depth=1, hidden_size=16)
    computed = AlignmentConfig(depth=1, hidden_size=16, teacher=str(tmp_path / "teacher"), images=str(root))
    losses = []
    for alignment in (stored, computed):
        run = build_run(tiny_config(data=data, alignment=alignment, model=ModelConfig(size="debug", patch_size=2)))
        batch = next(iter(run.data.train_dataloader()))
        losses.append(run.module.eval().losses(batch, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(losses[0]["alignment"], losses[1]["alignment"], atol=1e-3, rtol=1e-3)
    assert losses[0]["alignment"].detach() > 0

    config = tiny_config(max_steps=2, data=data, alignment=computed)
    pipe = MultimodalDiTPipeline.from_pretrained(
        fit(build_run(config), config.trainer, config.ema, tmp_path / "run", None)
    )
    assert pipe.id2label == {0: "torus", 1: "cone"}
    assert pipe.modalities["depth"].latents_mean is not None, "the whitening of the latents travels with the model"
    assert pipe.modalities["segmentation"].to_dict()["classes"][2]["id"] == 5

    scaled = build_run(tiny_config(data=replace(data, whitening="vae"), alignment=stored)).module.codec
    assert scaled.modalities["depth"].latents_mean is None
    torch.testing.assert_close(scaled.whiten_all(torch.ones(1, 4, 4, 2, 2)), torch.full((1, 4, 4, 2, 2), 0.18215))
    with pytest.raises(UserError, match=r"unknown data\.whitening 'vea'"):
        build_run(tiny_config(data=replace(data, whitening="vea"), alignment=stored))

    shard = latents / "train/shard-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"shard-00000\.safetensors: truncated or damaged"):
        build_run(config)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00000\.safetensors: the shard is missing"):
        build_run(config)
    shard.write_bytes(content)

    with pytest.raises(UserError, match=r"needs alignment\.images"):
        build_run(tiny_config(data=data, alignment=AlignmentConfig(depth=1, teacher=str(tmp_path / "teacher"))))
    make_dataset(2)
    with pytest.raises(UserError, match="lacks 3 samples"):
        build_run(tiny_config(data=data, alignment=computed))
