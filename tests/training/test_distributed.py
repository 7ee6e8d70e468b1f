"""Two processes against one: the same gradients, the same weights, checkpoints that move between strategies."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.checkpoints import read_checkpoint
from mmdit.training.config import TrainingConfig
from mmdit.training.recipes import build_run

Configure = Callable[..., TrainingConfig]
WORKER = Path(__file__).with_name("distributed_worker.py")
LAST = "checkpoints/step=00000002.ckpt"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, processes: Any, prompt_folders: Any) -> Path:
    """Folders of whole runs (one, ddp, fsdp2, bf16) and of runs that went on from another's checkpoint (a-b: from a in b).

    Those named prompts… read prompts, those named interleaved… too, by a multimodal LLM and with the attention-mask loss; those
    named steps… train few steps, those named frechet… on the features of samples.
    """
    root = tmp_path_factory.mktemp("runs")
    train = runpy.run_path(str(WORKER))["train"]
    folders = [str(folder) for folder in (prompt_folders.data, prompt_folders.latents, prompt_folders.clip)]
    train(str(root / "one"))
    train(str(root / "steps"), steps=True)
    torch.manual_seed(3)  # of 4 x 4 tokens, as the debug network has
    SceneTeacher(2, 3, image_size=16, patch_size=4, hidden_size=8, depth=1, num_heads=2).save_pretrained(
        root / "teacher"
    )
    frechet = {"teacher": str(root / "teacher")}
    train(str(root / "frechet"), **frechet)
    train(str(root / "prompts"), prompts=folders)
    interleaved: dict[str, Any] = {"prompts": [*folders[:2], str(prompt_folders.captioner)], "interleaved": True}
    train(str(root / "interleaved"), **interleaved)
    jobs: list[dict[str, Any]] = [
        {"output": "ddp", "strategy": "ddp"},
        {"output": "fsdp2", "strategy": "fsdp2"},
        {"output": "steps-ddp", "strategy": "ddp", "steps": True},
        {"output": "steps-fsdp2", "strategy": "fsdp2", "steps": True},
        {"output": "frechet-ddp", "strategy": "ddp", **frechet},
        {"output": "frechet-fsdp2", "strategy": "fsdp2", **frechet},
        {"output": "bf16", "strategy": "fsdp2", "precision": "bf16-mixed"},
        {"output": "prompts-ddp", "strategy": "ddp", "prompts": folders},
        {"output": "prompts-fsdp2", "strategy": "fsdp2", "prompts": folders},
        {"output": "interleaved-ddp", "strategy": "ddp", **interleaved},
        {"output": "interleaved-fsdp2", "strategy": "fsdp2", **interleaved},
        {"output": "ddp-ddp", "strategy": "ddp", "source": "ddp"},
        {"output": "fsdp2-fsdp2", "strategy": "fsdp2", "source": "fsdp2"},
        {"output": "fsdp2-ddp", "strategy": "ddp", "source": "fsdp2"},
        {"output": "one-fsdp2", "strategy": "fsdp2", "source": "one"},
    ]
    for job in jobs:
        job.update({key: str(root / job[key]) for key in ("output", "source") if key in job}, devices=2)
    processes.run([str(WORKER), json.dumps(jobs)], size=2)
    train(str(root / "fsdp2-one"), source=str(root / "fsdp2"))
    return root


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp_min(1e-6)) for name in a)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_have_the_gradients_of_one(runs: Path, strategy: str) -> None:
    one = load_file(runs / "one/gradients.safetensors")
    assert len(one) > 30
    assert all(value.abs().max() > 0 for value in one.values())
    assert difference(one, load_file(runs / strategy / "gradients.safetensors")) < 2e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_few_steps_are_shared_out_like_samples(runs: Path, strategy: str) -> None:
    """Who steps where to is drawn by position; a process without such a sample runs the network as often as the other."""
    one, ours = (load_file(runs / name / "gradients.safetensors") for name in ("steps", f"steps-{strategy}"))
    assert float(one["network.next_time_embed.fuse.0.weight"].abs().max()) > 0
    assert difference(one, ours) < 5e-5
    weights = [read_checkpoint(runs / name / LAST)["state_dict"] for name in ("steps", f"steps-{strategy}")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_samples_for_the_frechet_distance_are_shared_out_too(runs: Path, strategy: str) -> None:
    """One of a batch, so that a process has none, and moments and gradients are those of one process."""
    names = ("frechet", f"frechet-{strategy}")
    one, ours = (load_file(runs / name / "gradients.safetensors") for name in names)
    assert difference(one, ours) < 5e-5
    first, second = (read_checkpoint(runs / name / LAST)["frechet"] for name in names)
    assert second["count"] * 2 == first["count"] == 4
    for mine, theirs in zip(second["moments"], first["moments"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("kind", "weight"),
    [("prompts", "conditioner.pseudo_word.0.weight"), ("interleaved", "blocks.0.attn.prompt_kv.weight")],
)
def test_prompts_are_shared_out_like_samples(runs: Path, kind: str, weight: str, strategy: str) -> None:
    """Captions and subjects are drawn by position, so two processes see those of one; a batch of one may have no subject."""
    one, ours = (load_file(runs / name / "gradients.safetensors") for name in (kind, f"{kind}-{strategy}"))
    assert float(one[f"network.{weight}"].abs().max()) > 0
    assert difference(one, ours) < 2e-5
    weights = [read_checkpoint(runs / name / LAST)["state_dict"] for name in (kind, f"{kind}-{strategy}")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "one-fsdp2", "fsdp2-one", "fsdp2-ddp"])
def test_weights_average_and_optimizer_agree_with_one_process(runs: Path, name: str) -> None:
    ours, one = read_checkpoint(runs / name / LAST), read_checkpoint(runs / "one" / LAST)
    assert ours["batches_seen"] == one["batches_seen"] == 4
    assert ours["averaging_state"] == one["averaging_state"]
    for key in ("state_dict", "current_model_state"):
        for weight in one[key]:
            torch.testing.assert_close(ours[key][weight], one[key][weight], atol=2e-5, rtol=1e-4)
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (ours, one)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[1].items():
        for key, value in state.items():
            assert states[0][index][key].shape == value.shape
            torch.testing.assert_close(states[0][index][key], value, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_resuming_two_processes_is_exact(runs: Path, strategy: str) -> None:
    whole, resumed = (read_checkpoint(runs / name / LAST) for name in (strategy, f"{strategy}-{strategy}"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, resumed[key][name]) for name, value in whole[key].items())
    for ours, theirs in zip(*(c["optimizer_states"][0]["state"].values() for c in (whole, resumed)), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_sharded_runs_export_a_plain_pipeline(runs: Path) -> None:
    pipe = MultimodalDiTPipeline.from_pretrained(runs / "fsdp2/pipeline")
    averaged = read_checkpoint(runs / "fsdp2" / LAST)["state_dict"]
    for name, weight in pipe.transformer.state_dict().items():
        assert torch.equal(weight, averaged[f"network.{name}"])


def test_sharded_bfloat16_follows_float32(runs: Path) -> None:
    ours, exact = (load_file(runs / name / "gradients.safetensors") for name in ("bf16", "one"))
    flat = [torch.cat([value.flatten() for value in values.values()]) for values in (ours, exact)]
    assert all(value.dtype == torch.float32 for value in ours.values())
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) > 0.99


def test_small_networks_are_not_sharded(tiny_config: Configure) -> None:
    config = tiny_config(recipe="teacher")
    config.trainer.strategy = "fsdp2"
    with pytest.raises(UserError, match=r"fsdp2.*'teacher' is small"):
        build_run(config)
