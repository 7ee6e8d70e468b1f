"""LoRA of a pipeline: loaded, mixed, fused, saved, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

MakePipeline = Callable[..., MultimodalDiTPipeline]
FILE = "pytorch_lora_weights.safetensors"


def latents_of(pipe: MultimodalDiTPipeline) -> Tensor:
    out = pipe(["torus", "cone"], seed=0, num_inference_steps=2, output_type="latent")
    return out.latents


def add(pipe: MultimodalDiTPipeline, name: str, seed: int, **settings: Any) -> None:
    torch.manual_seed(seed)
    values = {"r": 3, "lora_alpha": 6.0, "target_modules": None, "init_lora_weights": False} | settings
    pipe.transformer.add_adapter(LoraConfig(**values), name)


@pytest.fixture
def style(make_pipeline: MakePipeline, tmp_path: Path) -> Path:
    """A folder with a LoRA of alpha 6 and rank 3; its file's names begin with "transformer."."""
    made = make_pipeline()
    add(made, "style", 0)
    made.save_lora_weights(tmp_path / "style")
    return tmp_path / "style"


def test_round_trip(make_pipeline: MakePipeline, style: Path) -> None:
    trained, pipe = make_pipeline(), make_pipeline()
    plain = latents_of(pipe)
    add(trained, "style", 0)
    expected = latents_of(trained)
    assert (expected - plain).abs().max() > 0.1
    with safe_open(style / FILE, framework="pt") as file:
        names, settings = list(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
    assert all(name.startswith("transformer.blocks.") for name in names)
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (3, 6.0)
    assert settings["transformer.target_modules"] == ["attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2"]

    pipe.load_lora_weights(style)
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}
    torch.testing.assert_close(latents_of(pipe), expected)
    pipe.disable_lora()
    assert torch.equal(latents_of(pipe), plain)
    pipe.enable_lora()
    pipe.unload_lora_weights()
    assert torch.equal(latents_of(pipe), plain)
    assert "lora" not in " ".join(pipe.transformer.state_dict())

    pipe.load_lora_weights(style / FILE, adapter_name="a")  # a file; tensors, as diffusers' scripts have them
    torch.testing.assert_close(latents_of(pipe), expected)
    pipe.unload_lora_weights()
    weights, settings = MultimodalDiTPipeline.lora_state_dict(style, return_lora_metadata=True)
    assert weights.keys() == set(names)
    assert settings["transformer.r"] == 3
    pipe.load_lora_weights(weights)  # without settings alpha is the rank: half of it
    pipe.set_adapters("default_0", 2.0)
    torch.testing.assert_close(latents_of(pipe), expected)


def test_several_are_mixed_and_fused(make_pipeline: MakePipeline, style: Path, tmp_path: Path) -> None:
    pipe = make_pipeline()
    plain = latents_of(pipe)
    pipe.load_lora_weights(style, adapter_name="style")
    add(
        pipe,
        "other",
        1,
        r=2,
        lora_alpha=2.0,
        target_modules=["attn.qkv", "head.linears.1"],
        rank_pattern={"head.linears.1": 4},
    )
    pipe.set_adapters(["style", "other"], [0.5, 0.8])
    with pytest.raises(UserError, match=r"2 adapters are active \(style, other\): name one"):
        pipe.save_lora_weights(tmp_path / "both")
    pipe.save_lora_weights(tmp_path / "other", adapter_name="other", weight_name="mine.safetensors")
    both = latents_of(pipe)
    again = make_pipeline()
    again.load_lora_weights(
        tmp_path / "other", adapter_name="other"
    )  # the only file of the folder; ranks differ by layer
    again.load_lora_weights(style, adapter_name="style")
    again.set_adapters(["style", "other"], [0.5, 0.8])
    torch.testing.assert_close(latents_of(again), both)

    pipe.fuse_lora(adapter_names=["style", "other"])
    assert (pipe.num_fused_loras, pipe.fused_loras) == (2, {"style", "other"})
    torch.testing.assert_close(latents_of(pipe), both)
    pipe.unfuse_lora()
    torch.testing.assert_close(latents_of(pipe), both)
    pipe.delete_adapters("other")
    pipe.set_adapters("style")
    alone = make_pipeline()
    alone.load_lora_weights(style)
    torch.testing.assert_close(latents_of(pipe), latents_of(alone))

    with pytest.raises(UserError, match=r"LoRA is loaded \(style\): save it alone with save_lora_weights, or"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.fuse_lora(lora_scale=0.5)
    fused = latents_of(pipe)
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(latents_of(loaded), fused)
    alone.set_adapters("default_0", 0.5)
    torch.testing.assert_close(latents_of(alone), fused)
    assert (fused - plain).abs().max() > 0.05


def test_as_diffusers_training_scripts_save(make_pipeline: MakePipeline, style: Path, tmp_path: Path) -> None:
    trained = make_pipeline()
    add(trained, "style", 0)
    weights = get_peft_model_state_dict(trained.transformer, adapter_name="style")
    settings = trained.transformer.peft_config["style"].to_dict()
    MultimodalDiTPipeline.save_lora_weights(
        save_directory=tmp_path / "class",
        transformer_lora_layers=weights,
        transformer_lora_adapter_metadata=settings,
    )
    assert load_file(tmp_path / "class" / FILE).keys() == load_file(style / FILE).keys()
    trained.transformer.save_lora_adapter(tmp_path / "bare", "style")  # names without "transformer."
    expected = latents_of(trained)
    for folder in ("class", "bare"):
        pipe = make_pipeline()
        pipe.load_lora_weights(tmp_path / folder)
        torch.testing.assert_close(latents_of(pipe), expected)


def test_half_precision_offloading_and_hotswap(make_pipeline: MakePipeline, style: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pipe, expected = make_pipeline(), make_pipeline()
    expected.load_lora_weights(style)
    right = latents_of(expected)
    pipe.to(torch.bfloat16)
    pipe.load_lora_weights(style)
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.bfloat16}
    assert (latents_of(pipe) - right).abs().max() < 0.1 * right.abs().max()

    offloaded = make_pipeline()
    offloaded.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    offloaded.load_lora_weights(style)
    torch.testing.assert_close(latents_of(offloaded), right)

    add(expected, "other", 1)
    expected.save_lora_weights(tmp_path / "other", adapter_name="other")
    swapped = make_pipeline()
    swapped.load_lora_weights(tmp_path / "other", adapter_name="style")
    swapped.load_lora_weights(style, adapter_name="style", hotswap=True)
    torch.testing.assert_close(latents_of(swapped), right)


def _changed(style: Path, **settings: Any) -> None:
    weights = load_file(style / FILE)
    with safe_open(style / FILE, framework="pt") as file:
        known = json.loads(file.metadata()["lora_adapter_metadata"])
    known |= {f"transformer.{name}": value for name, value in settings.items()}
    save_file(weights, style / FILE, {"lora_adapter_metadata": json.dumps(known)})


def _write(folder: Path, settings: str | None = None, **tensors: Tensor) -> None:
    save_file(tensors, folder / FILE, None if settings is None else {"lora_adapter_metadata": settings})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-9]), "truncated or damaged safetensors file"),
        (lambda f: (f / FILE).rename(f / "weights.bin"), "holds no pytorch_lora_weights.safetensors, and of other .* none"),
        (lambda f: save_file({"a.lora_A.weight": torch.zeros(1, 2)}, f / FILE), "no linear layer 'a'"),
        (lambda f: _write(f, a=torch.zeros(1, dtype=torch.int64)), "a is of I64; weights are"),
        (lambda f: _write(f, "{", a=torch.zeros(1)), "lora_adapter_metadata is not JSON"),
        (lambda f: _write(f, "[]", a=torch.zeros(1)), "it must be an object"),
        (lambda f: _changed(f, lora_alpha="6"), "lora_alpha is '6'; give a number above 0"),
        (lambda f: _changed(f, lora_alpha=0), "lora_alpha is 0; give a number above 0"),
        (lambda f: _changed(f, alpha_pattern={"(a+)+$": 1}), "alpha_pattern is .*; give names of layers"),
        (lambda f: _changed(f, use_dora=True), "is a DoRA"),
        (
            lambda f: save_file({k: v / 0 for k, v in load_file(f / FILE).items()}, f / FILE),
            "lora_A.weight holds NaN or infinity",
        ),
    ],
    ids=range(11),
)  # fmt: skip
def test_bad_files(pipe: MultimodalDiTPipeline, style: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(style)
    plain = latents_of(pipe)
    with pytest.raises(UserError, match=message) as caught:
        pipe.load_lora_weights(style)
    assert "\n" not in str(caught.value)
    assert str(style) in str(caught.value)
    assert torch.equal(latents_of(pipe), plain)
    assert "lora" not in " ".join(pipe.transformer.state_dict())


def test_a_file_says_nothing_else_to_peft(pipe: MultimodalDiTPipeline, style: Path) -> None:
    """Settings that make peft read, draw or import more are left aside; numbers are the weights' own."""
    right = pipe.lora_state_dict(style)
    _changed(
        style, r=99, init_lora_weights="pissa", modules_to_save=["head"], target_modules=".*", auto_mapping={"x": "y"}
    )
    pipe.load_lora_weights(style)
    config = pipe.transformer.peft_config["default_0"]
    assert (config.r, config.modules_to_save, config.auto_mapping) == (3, None, None)
    assert pipe.lora_state_dict(style).keys() == right.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, f: p.load_lora_weights("nowhere"), "LoRA 'nowhere': no such file or folder, and no Hub id"),
        (lambda p, f: p.load_lora_weights("owner/name"), "'owner/name' is no file or folder here, and the Hub can't be reached"),
        (lambda p, f: p.load_lora_weights(f, weight_name="a.bin"), "a.bin: pickled weights can run code"),
        (lambda p, f: p.load_lora_weights(f, use_safetensors=False), "read from safetensors only"),
        (lambda p, f: [p.load_lora_weights(f, "a") for _ in range(2)], "adapter 'a' is there already"),
        (lambda p, f: p.load_lora_weights(f, "a", hotswap=True), "adapter 'a' is not there"),
        (lambda p, f: p.save_lora_weights(f), "no LoRA is loaded"),
        (lambda p, f: p.fuse_lora(), "no LoRA is loaded: call load_lora_weights first"),
        (lambda p, f: p.save_lora_weights(f, safe_serialization=False), "saved as safetensors only"),
        (lambda p, f: MultimodalDiTPipeline.save_lora_weights(f), "transformer_lora_layers is missing"),
        (lambda p, f: (p.load_lora_weights(f), p.save_lora_weights(f, adapter_name="b")), "no adapter 'b': loaded are default_0"),
    ],
    ids=range(11),
)  # fmt: skip
def test_bad_calls(pipe: MultimodalDiTPipeline, style: Path, call: Callable[..., object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call(pipe, style)
    assert "\n" not in str(caught.value)
