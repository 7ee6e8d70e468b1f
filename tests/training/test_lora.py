"""LoRA runs: the bundled model learns a style, runs resume exactly, and what can't be meant is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_style import blueprint, distance_to_style

from mmdit.cli.main import main
from mmdit.data.latents import LatentShards
from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.checkpoints import read_checkpoint
from mmdit.training.config import (
    AlignmentConfig,
    DataConfig,
    LoRAConfig,
    ModelConfig,
    ObjectiveConfig,
    TrainerConfig,
    TrainingConfig,
)
from mmdit.training.recipes import build_run
from mmdit.training.recipes.data import stored_data
from mmdit.training.recipes.lora import lora_base
from mmdit.training.run import fit

Configure = Callable[..., TrainingConfig]
ROOT = Path(__file__).parents[2]
WEIGHTS = "lora/pytorch_lora_weights.safetensors"
LABELS = ["torus", "cone"]


def run(config: TrainingConfig, output: Path, resume: str | None = None) -> Path | None:
    return fit(build_run(config), config.trainer, config.ema, output, resume)


@pytest.mark.slow
def test_the_bundled_model_learns_a_style(
    style_latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From ten scenes as blueprints: what it then draws is one, and still what was asked for."""
    command = ["train", "--config", str(ROOT / "configs/scenes64_lora.yaml"), "--data.path", str(style_latents)]
    command += ["--trainer.max_steps", "40", "--trainer.accelerator", "cpu", "--data.batch_size", "8"]
    assert main([*command, "--optimizer.lr", "4e-3", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "lora")
    assert not (tmp_path / "pipeline").exists()

    pipe = MultimodalDiTPipeline.from_pretrained("scenes64")
    pipe.set_progress_bar_config(disable=True)
    ids = {entry["name"]: entry["id"] for entry in pipe.modalities["segmentation"].settings["classes"]}

    def draw() -> tuple[float, list[float]]:
        out = pipe(LABELS, seed=0, num_inference_steps=8)
        shown = [float((out.segmentation[i] == ids[name]).mean()) for i, name in enumerate(LABELS)]
        return distance_to_style(np.stack([np.asarray(image) for image in out.rgb])), shown

    before, objects = draw()
    pipe.load_lora_weights(tmp_path / "lora")
    after, objects_after = draw()
    assert before > 60  # 71.9 with the bundled model
    assert after < 0.5 * before  # 23.1
    assert min(objects) > 0.03
    assert min(objects_after) > 0.03
    pipe.disable_lora()
    assert draw() == (before, objects)
    assert distance_to_style(blueprint(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))) < 0.6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline on synthetic latents, with random weights everywhere."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = TrainerConfig(max_steps=1, validate_every=0, accelerator="cpu", devices=1)
    config = TrainingConfig(
        model=ModelConfig(size="debug"), trainer=trainer, alignment=AlignmentConfig(depth=1, hidden_size=8)
    )
    config.objective.prediction = "sample"
    built = build_run(config)
    with torch.no_grad():
        for parameter in built.module.network.parameters():
            parameter.normal_(std=0.1)
    built.export(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture
def lora_config(tiny_config: Configure, trained: Path) -> Configure:
    """A LoRA run of ``trained``; keyword arguments replace sections."""

    def build(max_steps: int = 4, **sections: object) -> TrainingConfig:
        defaults = {
            "alignment": None,
            "lora": LoRAConfig(rank=3),
            "model": ModelConfig(pretrained=str(trained)),  # whose size is not the default
        }
        return tiny_config(max_steps=max_steps, **{**defaults, **sections})

    return build


def test_resumed_exactly_with_the_average_saved(lora_config: Configure, trained: Path, tmp_path: Path) -> None:
    whole = run(lora_config(), tmp_path / "whole")
    assert whole == tmp_path / "whole/lora"
    assert "# LoRA for" in (whole / "README.md").read_text()
    checkpoints = tmp_path / "half/checkpoints"
    checkpoints.mkdir(parents=True)
    name = "step=00000002.ckpt"
    (checkpoints / name).write_bytes((tmp_path / "whole/checkpoints" / name).read_bytes())
    run(lora_config(), tmp_path / "half", "auto")
    first, second = (load_file(tmp_path / folder / WEIGHTS) for folder in ("whole", "half"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)

    last = read_checkpoint(tmp_path / "whole/checkpoints/step=00000004.ckpt")
    base = load_file(trained / "transformer/diffusion_pytorch_model.safetensors")
    for kind in ("state_dict", "current_model_state"):  # the averages and the weights in training
        state = {key.removeprefix("network.").replace(".base_layer", ""): value for key, value in last[kind].items()}
        assert all(torch.equal(state[key], value) for key, value in base.items())  # frozen
    changed = [key for key in first if ".lora_B." in key]
    assert len(changed) == 8
    for key in changed:
        own = "network." + key.removeprefix("transformer.").replace(".weight", ".default.weight")
        assert torch.equal(first[key], last["state_dict"][own])
        assert not torch.equal(first[key], last["current_model_state"][own])
        assert first[key].abs().max() > 0  # it began at zero
    (groups,) = (state["param_groups"] for state in last["optimizer_states"])
    assert [(group["muon"], len(group["params"])) for group in groups] == [
        (False, 16)
    ]  # by AdamW though "muon" is asked for

    pipe = MultimodalDiTPipeline.from_pretrained(trained)
    pipe.load_lora_weights(whole)
    with pytest.raises(UserError, match=r"is of another network \(.*lora_A.default.weight is 3 x 32 there, 4 x 32 in"):
        run(lora_config(lora=LoRAConfig(rank=4)), tmp_path / "half", "auto")


def test_updates_of_other_weights_or_of_another_scale_are_refused(
    lora_config: Configure, trained: Path, tmp_path: Path
) -> None:
    """Names and shapes are the same; where the model lies does not matter."""
    run(lora_config(max_steps=2), tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    assert run(lora_config(max_steps=2, model=ModelConfig(pretrained=str(moved))), tmp_path / "run", "auto") is not None
    with pytest.raises(UserError, match=r"another request \(lora\.alpha was 3, now 6"):
        run(lora_config(max_steps=2, lora=LoRAConfig(rank=3, alpha=6.0)), tmp_path / "run", "auto")
    weights = moved / "transformer/diffusion_pytorch_model.safetensors"
    save_file({name: weight * 2 for name, weight in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match=r"another request \(model\.pretrained was "):
        run(lora_config(max_steps=2, model=ModelConfig(pretrained=str(moved))), tmp_path / "run", "auto")


def test_settings_reach_the_file(lora_config: Configure, tmp_path: Path) -> None:
    folder = run(lora_config(1, lora=LoRAConfig(2, 8.0, ["attn.qkv", "time_embed.fuse.2"])), tmp_path)
    weights, settings = MultimodalDiTPipeline.lora_state_dict(folder, return_lora_metadata=True)
    assert {re.sub(r"blocks\.\d\.|\.lora_.*", "", key) for key in weights} == {
        "transformer.attn.qkv",
        "transformer.time_embed.fuse.2",
    }
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (2, 8.0)


def test_categories_go_by_their_names(
    style_latents: Path, lora_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    config = lora_config(data=DataConfig(path=str(style_latents), val_split=None))
    config.model.pretrained = "scenes64"
    base = lora_base(config)
    base.id2label = {0: "torus", 7: "cone"}
    built = build_run(config)
    latents = built.data.train
    assert isinstance(latents, LatentShards)
    labels = [latents[i]["category"] for i in range(10)]
    names = [latents.info.categories[label] for label in labels]  # the bundled model's order is that of the data
    assert len(set(names)) > 3
    data = stored_data(base.of(config))
    adopted = base.adopt(data)
    expected = [{"torus": 0, "cone": 7}.get(name, -1) for name in names]
    assert [adopted.train[i]["category"] for i in range(10)] == expected
    assert adopted.train.read_batch([0, 3])["category"].tolist() == [expected[0], expected[3]]
    assert (adopted.categories[0], adopted.categories[7], len(adopted.categories)) == ("torus", "cone", 10)
    assert "lacks the categories sphere, box" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig()}, "lora needs model.pretrained: give a pipeline folder or a bundled model"),
        ({"model": ModelConfig(pretrained="nowhere")}, "model.pretrained nowhere: give a pipeline folder"),
        ({"lora": LoRAConfig(0)}, "lora.rank is 0: give 1 to"),
        ({"lora": LoRAConfig(4, 0)}, "lora.alpha is 0: give a number above 0"),
        ({"lora": LoRAConfig(4, None, ["to_q"])}, "lora: unknown LoRA target 'to_q'"),
        ({"alignment": True}, "alignment is given beside lora"),
        ({"model": "trainable"}, "model.trainable is given beside lora"),
        ({"model": "weights_from"}, "model.weights_from is given beside lora"),
        ({"objective": ObjectiveConfig()}, "objective.prediction is 'velocity', and model.pretrained .* predicts 'sample'"),
        ({"seed": 1}, "data.path null: latents of another VAE than that of model.pretrained "),  # its seed makes it
    ],
    ids=range(10),
)  # fmt: skip
def test_bad_runs(lora_config: Configure, trained: Path, changes: dict, message: str) -> None:
    if changes.get("alignment") is True:
        changes = {"alignment": AlignmentConfig(depth=1)}
    if changes.get("model") == "trainable":
        changes = {"model": ModelConfig(pretrained=str(trained), trainable=["head"])}
    if changes.get("model") == "weights_from":
        changes = {"model": ModelConfig(pretrained=str(trained), weights_from={"head": str(trained)})}
    with pytest.raises(UserError, match=message) as caught:
        build_run(lora_config(**changes))
    assert "\n" not in str(caught.value)


def test_latents_that_lack_a_modality_of_the_model(style_latents: Path, lora_config: Configure, tmp_path: Path) -> None:
    shutil.copytree(style_latents, tmp_path / "latents")
    info = json.loads((tmp_path / "latents/latents.json").read_text())
    info["modalities"] = [each for each in info["modalities"] if each["name"] == "rgb"]
    (tmp_path / "latents/latents.json").write_text(json.dumps(info))
    config = lora_config(data=DataConfig(path=str(tmp_path / "latents"), val_split=None))
    config = replace(config, model=replace(config.model, pretrained="scenes64"))
    with pytest.raises(
        UserError, match=r"latents: has no depth, and a LoRA trains all modalities of model.pretrained \(rgb, "
    ):
        build_run(config)


def test_latents_that_are_encoded_otherwise(style_latents: Path, lora_config: Configure, tmp_path: Path) -> None:
    shutil.copytree(style_latents, tmp_path / "latents")
    info = json.loads((tmp_path / "latents/latents.json").read_text())
    (depth,) = (each for each in info["modalities"] if each["name"] == "depth")
    depth["space"] = "disparity"
    (tmp_path / "latents/latents.json").write_text(json.dumps(info))
    config = lora_config(data=DataConfig(path=str(tmp_path / "latents"), val_split=None))
    config = replace(config, model=replace(config.model, pretrained="scenes64"))
    with pytest.raises(UserError, match=r"depth is encoded otherwise than model.pretrained scenes64 has it \(space"):
        build_run(config)
