from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmdit.cli.main import main
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.encoders.precompute import encode_dataset, fingerprint
from mmdit.errors import UserError
from mmdit.pipelines.card import card_facts
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import AlignmentConfig, DataConfig, ModelConfig, PreviewConfig, TrainingConfig
from mmdit.training.recipes import build_run
from mmdit.training.run import fit


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


def test_the_vae_is_that_of_the_latents(latents: Path) -> None:
    """Latents of versions that did not say which it was are taken with what is there."""
    config = replace(
        TrainingConfig(), model=ModelConfig(size="nano"), data=DataConfig(path=str(latents), val_split=None)
    )
    build_run(config)
    weights = latents / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({name: value + 1 for name, value in state.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"vae: is another VAE than that of latents\.json"):
        build_run(config)
    values = json.loads((latents / "latents.json").read_text())
    del values["vae"]["fingerprint"]
    (latents / "latents.json").write_text(json.dumps(values))
    build_run(config)


@pytest.mark.parametrize(("generator", "saw"), [("mmdit data render", False), ("mmdit data import", None)])
def test_card_says_that_scenes_are_no_photographs(
    latents: Path, tmp_path: Path, generator: str, saw: bool | None
) -> None:
    values = json.loads((latents / "latents.json").read_text())
    (latents / "latents.json").write_text(json.dumps({**values, "source": {"provenance": {"generator": generator}}}))
    model = ModelConfig(size="debug", patch_size=2)
    run = build_run(TrainingConfig(model=model, data=DataConfig(path=str(latents), val_split=None)))
    run.export(tmp_path / "pipeline")
    assert card_facts(tmp_path / "pipeline").get("photographs") is saw


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "os.system"}, "modality 'rgb': unknown codec 'os.system': did you mean "),
        ({"codec": "depth", "space": "foo"}, "modality 'rgb': unknown depth space 'foo': did you mean "),
        ({"codec": "depth", "quantiles": "foo"}, "modality 'rgb': "),
        ({"codec": "depth", "quantiles": [0.1]}, "modality 'rgb': "),
        ({"codec": "segmentation", "classes": [{"id": "x"}]}, "modality 'rgb': segmentation class "),
        ({"codec": "segmentation", "classes": 3}, "modality 'rgb': "),
        ({"colour": 3}, "modality 'rgb': settings {'colour': 3} do not fit its codec: "),
        (None, "damaged: 'modalities' has one twice: "),
    ],
)
def test_modalities_that_the_export_could_not_decode(latents: Path, changes: dict | None, message: str) -> None:
    """Found out when the latents are opened, not after the training."""
    info = json.loads((latents / "latents.json").read_text())
    (rgb,) = info["modalities"]
    info["modalities"] = [rgb, rgb] if changes is None else [{**rgb, **changes}]
    (latents / "latents.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=re.escape(f"{latents / 'latents.json'}: {message}")) as caught:
        build_run(replace(TrainingConfig(), data=DataConfig(path=str(latents), val_split=None)))
    assert "encode the dataset again" in str(caught.value)


def test_latents_without_a_split_to_validate_on(latents: Path) -> None:
    config = replace(TrainingConfig(), data=DataConfig(path=str(latents)))
    with pytest.raises(UserError, match=r"has no split 'val' to validate on.*--data\.val_split null"):
        build_run(config)
    with pytest.raises(UserError, match=r"finished splits of .*: train"):
        build_run(replace(config, data=DataConfig(path=str(latents), train_split="trian")))


@pytest.mark.parametrize(
    ("modalities", "split", "message"),
    [
        ([], "train", "model.modalities is an empty list"),
        (["rgb", "rgb"], "train", "model.modalities names 'rgb' twice"),
        (None, "../latents/train", r"split '\.\./latents/train': must be the name of a folder"),
    ],
)
def test_names_of_the_data_are_each_one(latents: Path, modalities: list[str] | None, split: str, message: str) -> None:
    data = DataConfig(path=str(latents), train_split=split, val_split=None)
    with pytest.raises(UserError, match=message):
        build_run(replace(TrainingConfig(), model=ModelConfig(size="nano", modalities=modalities), data=data))


def test_images_that_do_not_divide_into_patches(latents: Path) -> None:
    config = TrainingConfig(
        model=ModelConfig(size="debug", patch_size=3), data=DataConfig(path=str(latents), val_split=None)
    )
    message = r"latents: images of 16 x 16 pixels .* do not divide into patches of 12: encode with another --size, such as 12x12"
    with pytest.raises(UserError, match=message):
        build_run(config)


def test_data_without_categories(
    latents: Path,
    tmp_path: Path,
    tiny_config: Callable[..., TrainingConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hypersim has none: the run validates, draws its previews without a label, and exports a model with no class."""
    info = json.loads((latents / "latents.json").read_text())
    (latents / "latents.json").write_text(json.dumps({**info, "categories": []}))
    for shard in latents.glob("*/shard-*.safetensors"):
        tensors = load_file(shard)
        with safe_open(shard, framework="pt") as file:
            metadata = file.metadata()
        save_file({**tensors, "category": torch.full_like(tensors["category"], -1)}, shard, metadata=metadata)
    config = tiny_config(
        max_steps=1,
        alignment=None,
        data=DataConfig(path=str(latents), batch_size=2, val_split="train"),
        preview=PreviewConfig(num_samples=1, num_measured=1, num_inference_steps=1),
    )
    config.trainer = replace(config.trainer, validate_every=1)
    folder = fit(build_run(config), config.trainer, config.ema, tmp_path / "run", None)
    assert MultimodalDiTPipeline.from_pretrained(folder).transformer.config.num_classes == 0
    command = ["samples", "--model", str(folder), "--output", str(tmp_path / "samples"), "--num_samples", "1"]
    assert main([*command, "--num_inference_steps", "1"]) == 2
    assert "has no classes: give none" in capsys.readouterr().err
    assert main([*command, "--num_inference_steps", "1", "--labels", "none"]) == 0


def test_a_run_does_not_go_on_with_latents_of_another_meaning(
    latents: Path, tmp_path: Path, tiny_config: Callable[..., TrainingConfig]
) -> None:
    data = DataConfig(path=str(latents), batch_size=2, val_split=None)
    config = tiny_config(max_steps=1, checkpoint_every=1, alignment=None, data=data)

    def resume(data: DataConfig) -> Path | None:
        return fit(build_run(replace(config, data=data)), config.trainer, config.ema, tmp_path / "run", "auto")

    resume(data)
    assert resume(data) is not None
    with pytest.raises(UserError, match=r"another request \(modalities\.rgb\.latents_mean was \[.*, now None"):
        resume(replace(data, whitening="vae"))
    info = json.loads((latents / "latents.json").read_text())
    names = [f"other {name}" for name in info["categories"]]
    (latents / "latents.json").write_text(json.dumps({**info, "categories": names}))
    with pytest.raises(UserError, match=r"another request \(categories was "):
        resume(data)
    (latents / "latents.json").write_text(json.dumps(info))
    weights = latents / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({**state, "encoder.conv_in.bias": state["encoder.conv_in.bias"] + 1}, weights)
    with pytest.raises(UserError, match=r"vae: is another VAE than that of latents\.json beside it"):
        resume(data)
    vae = {**info["vae"], "fingerprint": fingerprint(AutoencoderKL.from_pretrained(latents / "vae"))}
    (latents / "latents.json").write_text(json.dumps({**info, "vae": vae}))
    with pytest.raises(UserError, match=r"another request \(vae was "):
        resume(data)


@pytest.mark.parametrize("teacher", ["vae", "latents"])
def test_the_vae_itself_is_aligned_with(latents: Path, tmp_path: Path, teacher: str) -> None:
    images = str(tmp_path / "dataset") if teacher == "vae" else None
    config = TrainingConfig(
        model=ModelConfig(size="debug", modalities=["rgb"]),
        data=DataConfig(path=str(latents), val_split=None, batch_size=2),
        alignment=AlignmentConfig(depth=1, hidden_size=8, teacher=teacher, images=images),
    )
    run = build_run(config)
    assert run.module.network.config.alignment_dim == {"vae": 8 * 4, "latents": 4 * 4}[teacher]
    batch = next(iter(run.data.train_dataloader()))
    assert ("rgb" in batch) == (teacher == "vae")
    losses = run.module.losses(batch, torch.Generator().manual_seed(0))
    assert 0 < float(losses["alignment"].detach()) < 2
    losses["loss"].backward()
    assert run.module.network.blocks[0].mlp.fc1.weight.grad is not None
    assert all(p.grad is None for p in run.module.frozen.codec.vae.parameters())
