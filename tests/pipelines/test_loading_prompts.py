"""Folders of models that take prompts: saved, loaded, and refused where a component is not what it should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_multimodal import FAMILIES, make_multimodal

from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

MakePipeline = Callable[..., MultimodalDiTPipeline]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
ENCODERS = ["image_encoder", "image_processor", "text_encoder", "tokenizer"]


def run(pipe: MultimodalDiTPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    words = {"prompt": "a red {torus}", "subjects": [PICTURE]}
    return pipe(**words, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").normal


@pytest.fixture
def folder(prompted: MultimodalDiTPipeline, tmp_path: Path) -> Path:
    prompted.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["bert", "clip", "t5"])
def test_round_trip(make_prompted: MakePipeline, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipe = make_prompted(kind)
    pipe.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md", *ENCODERS[:2], "model_index.json", "pipeline.py", "scheduler", "text_encoder", "tokenizer",
        "transformer", "vae",
    ]  # fmt: skip
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path)
    np.testing.assert_allclose(run(loaded), run(pipe), atol=1e-4)
    assert set(loaded.components) == {"transformer", "vae", "scheduler", *ENCODERS}
    assert not any(parameter.requires_grad for parameter in loaded.text_encoder.parameters())
    second = MultimodalDiTPipeline(**loaded.components, **loaded.parameters)
    np.testing.assert_allclose(run(second), run(pipe), atol=1e-4)
    assert loaded.weights_digest() == pipe.weights_digest()
    assert "shards" not in (shown := capfd.readouterr().err)
    assert "LOAD REPORT" not in shown


@pytest.mark.parametrize("family", FAMILIES)
def test_a_multimodal_llm(make_pipeline: MakePipeline, family: str, tmp_path: Path) -> None:
    """Saved and loaded; a batch equals its samples; there is no text alone to fuse with; a processor that names code."""
    model, processor = make_multimodal(family)
    pipe = make_pipeline(
        components={"text_encoder": model, "processor": processor},
        block="cross",
        conditioner="interleaved",
        conditioner_settings={"text_width": 16},
    )
    pipe.save_pretrained(tmp_path)
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path)
    assert set(loaded.components) == {"transformer", "vae", "scheduler", "text_encoder", "processor"}
    # Which library resizes the pictures of a loaded processor is up to transformers and torchvision.
    np.testing.assert_allclose(run(loaded), run(pipe), atol=2e-3)
    words: dict[str, Any] = {"prompt": ["a red {torus}", "a cone", None], "subjects": [[PICTURE], None, None]}
    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    common: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    batch = loaded(**words, **common, latents=noise.expand(3, -1, -1, -1, -1)).latents
    for i in range(3):
        single = loaded(**{name: values[i] for name, values in words.items()}, **common, latents=noise).latents
        torch.testing.assert_close(batch[i : i + 1], single, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"fusing_scale is 0\.5, but this model has no prediction from the text alone"):
        loaded(prompt="a red {torus}", subjects=[PICTURE], fusing_scale=0.5)
    with pytest.raises(
        UserError, match="has no processor, which its prompts need: give the component, from_pretrained"
    ):
        MultimodalDiTPipeline.from_pretrained(tmp_path, processor=None)
    _edit_json("processor/processor_config.json", auto_map={"AutoProcessor": "payload.X"})(tmp_path)
    with pytest.raises(UserError, match=r"processor_config\.json: 'auto_map' would have other code"):
        MultimodalDiTPipeline.from_pretrained(tmp_path)


def test_a_class_models_folder_is_as_it_was(pipe: MultimodalDiTPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    names = {name for name in index if not name.startswith("_")}
    assert names == {"transformer", "vae", "scheduler", "modalities", "id2label"}
    nothing = {name: [None, None] for name in [*ENCODERS, "processor"]}  # as diffusers would say it
    (tmp_path / "model_index.json").write_text(json.dumps(index | nothing))
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path)
    assert loaded.text_encoder is None
    assert set(loaded.components) == {"transformer", "vae", "scheduler"}


def test_the_first_versions_folder(tmp_path: Path) -> None:
    loaded = MultimodalDiTPipeline.from_pretrained(Path(__file__).parents[1] / "first_version" / "pipeline")
    loaded.save_pretrained(tmp_path)
    again = MultimodalDiTPipeline.from_pretrained(tmp_path)
    assert set(again.components) == {"transformer", "vae", "scheduler"}
    assert again.weights_digest() == loaded.weights_digest()


def test_optional_components(folder: Path, tmp_path: Path, prompted: MultimodalDiTPipeline) -> None:
    text_only = MultimodalDiTPipeline.from_pretrained(folder, image_encoder=None, image_processor=None)
    assert text_only.image_encoder is None
    text_only.save_pretrained(tmp_path / "text")
    assert not (tmp_path / "text" / "image_encoder").exists()
    again = MultimodalDiTPipeline.from_pretrained(tmp_path / "text")
    assert len(again(prompt="a red torus", num_inference_steps=1).rgb) == 1
    with pytest.raises(UserError, match="takes no subjects' images"):
        again(prompt="a {torus}", subjects=[PICTURE])
    bare = MultimodalDiTPipeline.from_pretrained(folder, **dict.fromkeys(ENCODERS))
    assert len(bare("torus", num_inference_steps=1).rgb) == 1
    for name in ENCODERS:  # set later, they are saved, too
        setattr(bare, name, getattr(prompted, name))
    bare.save_pretrained(tmp_path / "again")
    np.testing.assert_allclose(run(MultimodalDiTPipeline.from_pretrained(tmp_path / "again")), run(prompted), atol=1e-4)


def test_dtypes_variants_and_shards(prompted: MultimodalDiTPipeline, folder: Path, tmp_path: Path) -> None:
    expected = run(prompted)
    mixed = MultimodalDiTPipeline.from_pretrained(
        folder, torch_dtype={"text_encoder": torch.float16, "default": torch.float32}
    )
    assert (mixed.text_encoder.dtype, mixed.image_encoder.dtype, mixed.dtype) == (
        torch.float16,
        torch.float32,
        torch.float32,
    )
    assert np.abs(run(mixed) - expected).mean() < 0.02
    prompted.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards" / "text_encoder").glob("*-of-*.safetensors"))) > 1
    np.testing.assert_allclose(run(MultimodalDiTPipeline.from_pretrained(tmp_path / "shards")), expected, atol=1e-4)
    next((tmp_path / "shards" / "text_encoder").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"no such file, though model\.safetensors\.index\.json lists it"):
        MultimodalDiTPipeline.from_pretrained(tmp_path / "shards")
    prompted.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    half = MultimodalDiTPipeline.from_pretrained(tmp_path / "half", variant="fp16")
    assert half.text_encoder.dtype == torch.float32
    assert np.abs(run(half) - expected).mean() < 0.02


def _edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return edit


def _edit_weights(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return edit


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _large(folder: Path) -> None:
    with (folder / "tokenizer" / "tokenizer.json").open("ab") as file:
        file.truncate(65 * 2**20)


NORM = "embeddings.LayerNorm.weight"
INDEX, TEXT, PROCESSOR = "model_index.json", "text_encoder/config.json", "image_processor/preprocessor_config.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edit_json(INDEX, text_encoder=["payload", "BertModel"]), r"text_encoder is \['payload', 'BertModel'\], which is"),
        (_edit_json(INDEX, text_encoder=["transformers", "GPT2Model"]), "GPT2Model.*never loaded.*CLIPTextModel"),
        (_edit_json(INDEX, text_encoder=["transformers", "pipeline"]), "never loaded"),
        (_edit_json(INDEX, tokenizer=["transformers", "AutoTokenizer"]), "never loaded"),
        (_edit_json(INDEX, image_encoder=["diffusers", "AutoencoderKL"]), "never loaded"),
        (_edit_json(INDEX, image_processor=[None, "X"]), "never loaded"),
        (_edit_json(INDEX, processor=3), "processor is 3, which is never loaded"),
        (_edit_json(TEXT, auto_map={"AutoModel": "payload.X"}), "'auto_map' would have other code"),
        (_edit_json(TEXT, quantization_config={"quant_method": "payload"}), "'quantization_config' would have"),
        (_edit_json(TEXT, attn_implementation="owner/kernel"), "'owner/kernel', which would be fetched as code"),
        (_edit_json(TEXT, num_hidden_layers=10**9), r"num_hidden_layers is 1000000000, but its weights are \d+ tensors"),
        (_edit_json(TEXT, hidden_size=24), "text_encoder"),
        (_edit_json(TEXT, hidden_size="16"), "text_encoder"),
        (_edit_json(TEXT, model_type="payload"), "model_type is 'payload', not 'bert'"),
        (_edit_json("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["payload.X", None]}), "'auto_map'"),
        (_edit_json(PROCESSOR, auto_map={"AutoImageProcessor": "payload.X"}), "'auto_map' would have"),
        (_edit_json(PROCESSOR, size={"shortest_edge": 10**9}), r"size\.shortest_edge is 1000000000: give at most 8192"),
        (_write("text_encoder/adapter_config.json", b"{}"), "an adapter names another model"),
        (_write("text_encoder/pytorch_model.bin", b"\x80\x04."), "pickled weights can run code"),
        (_write("tokenizer/tokenizer.json", b"{}"), r"tokenizer\.json: not a tokenizer"),
        (_write("tokenizer/tokenizer.json", b"nonsense"), r"tokenizer\.json: not readable as JSON"),
        (_large, r"tokenizer\.json: has 68157440 bytes, at most 67108864 are read"),
        (_write("text_encoder/model.safetensors", b"\x08\0\0\0\0\0\0\0{"), "truncated or damaged"),
        (_remove(TEXT), r"text_encoder/config\.json: no such file"),
        (_remove("text_encoder/model.safetensors"), "text_encoder: holds no weights"),
        (_remove("tokenizer/tokenizer.json"), r"tokenizer/tokenizer\.json: no such file"),
        (_remove(PROCESSOR), r"preprocessor_config\.json: no such file"),
        (_edit_weights("text_encoder", lambda w: w.pop(NORM)), f"its weights lack 1 tensors, first '{NORM}'"),
        (_edit_weights("text_encoder", lambda w: w.update(extra=torch.ones(1))), "hold besides 1 tensors, first 'extra'"),
        (_edit_weights("text_encoder", lambda w: w.update({NORM: torch.ones(7)})), "text_encoder can't be loaded"),
        (_edit_weights("text_encoder", lambda w: w.update({NORM: torch.ones(16).long()})), f"{NORM} is of I64; weights are"),
        (_edit_weights("image_encoder", lambda w: w["visual_projection.weight"].fill_(np.nan)), "holds NaN or infinity"),
        (_edit_weights("text_encoder", lambda w: w[NORM].fill_(np.inf)), f"weight {NORM} holds NaN or infinity"),
    ],
)  # fmt: skip
def test_bad_folders(
    folder: Path, damage: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "payload.py").write_text("raise SystemExit('code from data ran')")
    monkeypatch.syspath_prepend(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        MultimodalDiTPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_missing_folder_is_named(folder: Path) -> None:
    (folder / "tokenizer").rename(folder / "other")
    with pytest.raises(UserError, match=r"tokenizer: no such folder, though model_index\.json lists it"):
        MultimodalDiTPipeline.from_pretrained(folder)
