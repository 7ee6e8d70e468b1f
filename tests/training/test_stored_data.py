from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.errors import UserError
from mmdit.latents.precompute import encode_dataset
from mmdit.training.config import DataConfig
from mmdit.training.recipes import TrainingConfig, build_run


@pytest.fixture
def latents(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=48, out_channels=48, block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False
    )
    root = make_dataset()
    modalities = modalities_from_dataset(read_dataset_info(root), ["rgb"])
    encode_dataset(root, tmp_path / "latents", vae.eval(), modalities, say=lambda text: None)
    return tmp_path / "latents"


def test_latents_without_a_readable_vae(latents: Path) -> None:
    config = replace(TrainingConfig(), data=DataConfig(path=str(latents), val_split=None))
    weights = latents / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"vae: damaged .*; delete it and run 'mmdit data encode' again") as caught:
        build_run(config)
    assert "\n" not in str(caught.value)
    shutil.rmtree(latents / "vae")
    with pytest.raises(UserError, match="vae: no such folder; run 'mmdit data encode' again"):
        build_run(config)
