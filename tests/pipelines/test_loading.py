from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import is_accelerate_available
from safetensors.torch import load_file, save_file

from mmdit.errors import UserError
from mmdit.modalities.modality import Modality
from mmdit.pipelines.loading import bundled_models, resolve_model
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

MakePipeline = Callable[..., MultimodalDiTPipeline]


def run(pipe: MultimodalDiTPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe("cone", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").normal


@pytest.fixture
def folder(pipe: MultimodalDiTPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(pipe: MultimodalDiTPipeline, folder: Path) -> None:
    files = ["README.md", "model_index.json", "pipeline.py", "scheduler", "transformer", "vae"]
    assert sorted(path.name for path in folder.iterdir()) == files
    loaded = MultimodalDiTPipeline.from_pretrained(folder)
    assert loaded.modalities == pipe.modalities
    assert list(loaded.modalities) == ["rgb", "depth", "normal", "segmentation"]  # not the order of JSON
    assert loaded.id2label == {0: "sphere", 1: "box", 2: "cylinder", 3: "cone", 4: "torus"}
    assert loaded.labels["torus"] == 4
    assert not loaded.transformer.training
    assert loaded.name_or_path == str(folder)
    np.testing.assert_allclose(run(loaded), run(pipe), atol=1e-5)


def test_folder_says_what_outputs_mean(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MultimodalDiTPipeline"]
    assert index["transformer"] == ["mmdit.models.transformer", "MultimodalDiT"]
    assert index["modalities"]["depth"]["space"] in ("depth", "disparity")
    assert index["modalities"]["segmentation"]["classes"][2] == {"id": 7, "name": "torus", "color": [255, 0, 0]}
    assert index["id2label"]["3"] == "cone"


def test_half_precision_variant_and_dtypes(pipe: MultimodalDiTPipeline, tmp_path: Path) -> None:
    expected = run(pipe)
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path, variant="fp16")
    assert loaded.dtype == torch.float32
    assert np.abs(run(loaded) - expected).mean() < 0.02
    mixed = MultimodalDiTPipeline.from_pretrained(
        tmp_path, variant="fp16", torch_dtype={"transformer": torch.bfloat16, "default": torch.float16}
    )
    assert (mixed.transformer.dtype, mixed.vae.dtype) == (torch.bfloat16, torch.float16)
    with pytest.raises(ValueError, match="variant=bf16"):
        MultimodalDiTPipeline.from_pretrained(tmp_path, variant="bf16")


def test_shards(pipe: MultimodalDiTPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted((tmp_path / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    np.testing.assert_allclose(run(MultimodalDiTPipeline.from_pretrained(tmp_path)), run(pipe), atol=1e-5)
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name}: no such file, though .*index.json lists it"):
        MultimodalDiTPipeline.from_pretrained(tmp_path)


def test_weights_are_never_pickled(pipe: MultimodalDiTPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.rglob("*.bin"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_components_that_replace_the_folders(pipe: MultimodalDiTPipeline, folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    loaded = MultimodalDiTPipeline.from_pretrained(folder, vae=pipe.vae)
    assert loaded.vae is pipe.vae


def test_second_pipeline_on_the_same_weights(pipe: MultimodalDiTPipeline) -> None:
    assert set(pipe.components) == {"transformer", "vae", "scheduler"}
    second = MultimodalDiTPipeline(**pipe.components, **pipe.parameters)
    assert second.transformer is pipe.transformer
    assert second.modalities == pipe.modalities
    assert second.id2label == pipe.id2label
    np.testing.assert_array_equal(run(second), run(pipe))
    plain = MultimodalDiTPipeline(**pipe.components)
    assert plain.modalities["rgb"].latents_mean is None  # the defaults


def test_modalities_must_be_the_transformers(pipe: MultimodalDiTPipeline) -> None:
    with pytest.raises(UserError, match="modalities are rgb: the transformer has rgb, depth, normal, segmentation"):
        MultimodalDiTPipeline(**pipe.components, modalities={"rgb": Modality("rgb", "rgb")})
    wrong = pipe.modalities | {"depth": pipe.modalities["depth"].replace(space="metres")}
    with pytest.raises(UserError, match="unknown depth space 'metres'"):
        MultimodalDiTPipeline(**pipe.components, modalities=wrong)


def _damage_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def _change_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "DiTPipeline"}))


def _truncate(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _empty(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"")


def _pickle(folder: Path) -> None:
    torch.save({}, folder / "transformer" / "diffusion_pytorch_model.bin")


def _edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)

    return edit


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("model_index.json"), r"model_index\.json: no such file"),
        (_damage_index, r"model_index\.json: not readable as JSON"),
        (_change_class, "holds a DiTPipeline, not a MultimodalDiTPipeline"),
        (_remove("transformer/config.json"), r"transformer/config\.json: no such file"),
        (_remove("scheduler/scheduler_config.json"), r"scheduler_config\.json: no such file"),
        (_remove("vae/diffusion_pytorch_model.safetensors"), "vae: holds no weights"),
        (_truncate, r"diffusion_pytorch_model\.safetensors: truncated or damaged"),
        (_empty, "truncated or damaged"),
        (_pickle, r"diffusion_pytorch_model\.bin: pickled weights can run code"),
        (
            _edit_weights(lambda w: w.pop("blocks.1.mlp.fc1.weight")),
            r"transformer: the weights lack 'blocks\.1\.mlp\.fc1",
        ),
        (_edit_weights(lambda w: w.update(extra=torch.ones(1))), "transformer: the weights hold 'extra' besides"),
    ],
)
def test_bad_folders(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        MultimodalDiTPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def _edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return edit


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _edit_json("model_index.json", transformer=["payload", "X"]),
            "transformer is X of payload, which is never loaded",
        ),
        (_edit_json("model_index.json", vae=["payload", "AutoencoderKL"]), "vae is AutoencoderKL of payload"),
        (_edit_json("model_index.json", vae=["diffusers", "AutoencoderTiny"]), "vae is AutoencoderTiny of diffusers"),
        (
            _edit_json("model_index.json", scheduler=["payload", "EulerScheduler"]),
            "scheduler is EulerScheduler of payload",
        ),
        (
            _edit_json("model_index.json", scheduler=["diffusers", "DiffusionPipeline"]),
            "scheduler is DiffusionPipeline",
        ),
        (_edit_json("model_index.json", extra=["payload", "X"]), "extra is .*; the components are transformer, vae"),
        (_edit_json("model_index.json", vae=[1, 2]), r"vae is \[1, 2\]; give a library and a class"),
        (_edit_json("model_index.json", vae=[None, None]), "vae is .*; give a library and a class"),
        (_edit_json("model_index.json", _class_name=["payload", "X"]), "holds a .*payload"),
        (_edit_json("model_index.json", id2label=["a"]), "id2label is a list; give an object or null"),
        (_edit_json("model_index.json", id2label={"x": "a"}), "id2label holds 'x': 'a'"),
        (_edit_json("model_index.json", id2label={"0": 3}), "id2label holds '0': 3"),
        (
            _edit_json("model_index.json", id2label={"4": "a", "5": "b"}),
            r"model_index.json: id2label holds 5, the transformer has 5 classes: give 0 to 4",
        ),
        (_edit_json("model_index.json", modalities={"rgb": 3}), "modality 'rgb' is a int"),
        (_edit_json("model_index.json", modalities={"rgb": {"codec": 3}}), "can't be loaded"),
        (_edit_json("vae/config.json", latent_channels=10**9), "latent_channels is 1000000000"),
        (_edit_json("vae/config.json", auto_map={"AutoModel": "payload.X"}), "'auto_map' would have other code"),
        (_edit_json("vae/config.json", down_block_types=["payload.X"]), "no AutoencoderKL has such a configuration"),
        (_edit_json(SCHEDULER, num_train_timesteps=10**9), "num_train_timesteps is 1000000000: give a number from 0"),
        (_edit_json(SCHEDULER, shift=0.0), "scheduler_config.json: "),
        (_edit_json(SCHEDULER, shift="1"), 'shift is "1": give a number'),
        (_edit_json(SCHEDULER, shift=-1.0), "scheduler_config.json: "),
        (_edit_json(SCHEDULER, _class_name="Other"), "_class_name is 'Other'"),
    ],
)
def test_folders_that_say_something_else(
    folder: Path, damage: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "payload.py").write_text("raise SystemExit('code from data ran')")
    monkeypatch.syspath_prepend(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        MultimodalDiTPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_every_scheduler_of_ours_is_saved_and_loaded(pipe: MultimodalDiTPipeline, tmp_path: Path) -> None:
    from mmdit.flow.schedulers import SCHEDULERS, make_scheduler

    for name in SCHEDULERS:
        pipe.scheduler = make_scheduler(name)
        pipe.register_modules(scheduler=pipe.scheduler)
        pipe.save_pretrained(tmp_path / name)
        assert type(MultimodalDiTPipeline.from_pretrained(tmp_path / name).scheduler) is type(pipe.scheduler)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_that_are_not_finite_are_refused(folder: Path, part: str) -> None:
    path = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, path)
    with pytest.raises(UserError, match=f"{part}: weight {name} holds NaN or infinity"):
        MultimodalDiTPipeline.from_pretrained(folder)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, is_accelerate_available()])
def test_weights_of_another_size_do_not_fit(folder: Path, low_cpu_mem_usage: bool) -> None:
    edit = _edit_weights(lambda weights: weights.update({"role_embed.base": torch.zeros(7)}))
    edit(folder)
    with pytest.raises(UserError, match=r"weights are not those of its config\.json.*role_embed\.base") as caught:
        MultimodalDiTPipeline.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert "\n" not in str(caught.value)
    assert "If you want" not in str(caught.value)


def test_quiet_without_accelerate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module in ("diffusers.models.modeling_utils", "diffusers.pipelines.pipeline_utils"):
        monkeypatch.setattr(f"{module}.is_accelerate_available", lambda: False)
    monkeypatch.setattr("mmdit.pipelines.folder.is_accelerate_available", lambda: False)
    MultimodalDiTPipeline.from_pretrained(folder)
    assert "accelerate" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["scenes46", "./nothing/here", "/nothing", "~/nothing"])
def test_no_such_model(name: str) -> None:
    with pytest.raises(UserError, match=f"no model '{name}': give a bundled name"):
        MultimodalDiTPipeline.from_pretrained(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"is a file: give the folder that holds model_index\.json"):
        resolve_model(tmp_path / "model.safetensors")


def test_hub_ids_and_bundled_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model("owner/name") == "owner/name"
    for name, folder in bundled_models().items():
        assert resolve_model(name) == folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve_model("owner/name") == Path("owner/name")  # a local folder comes before the Hub


def test_unreachable_hub_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'owner/name' is neither bundled nor a local folder, and the Hub") as caught:
        MultimodalDiTPipeline.from_pretrained("owner/name", local_files_only=True, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_pickles_can_not_be_asked_for(folder: Path) -> None:
    with pytest.raises(UserError, match="use_safetensors is False"):
        MultimodalDiTPipeline.from_pretrained(folder, use_safetensors=False)
    options: dict[str, Any] = {"use_safetensors": None}
    assert MultimodalDiTPipeline.from_pretrained(folder, **options).dtype == torch.float32
