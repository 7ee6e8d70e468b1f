"""``mmdit export onnx``: graphs that compute what the pipeline does, and nothing lost."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from mmdit.cli.main import main
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

FILES = {"transformer.onnx", "vae_encoder.onnx", "vae_decoder.onnx", "export.json"}


@pytest.fixture(scope="module")
def exported(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an export, and what the command said."""
    folder, text = tmp_path_factory.mktemp("onnx") / "out", StringIO()
    with redirect_stdout(text):
        assert main(["export", "onnx", "--model", str(tiny_pipeline_dir), "--output", str(folder)]) == 0
    return folder, text.getvalue()


@pytest.mark.slow
def test_files_and_differences(exported: tuple[Path, str]) -> None:
    folder, text = exported
    assert {path.name for path in folder.iterdir() if not path.name.endswith(".data")} == FILES
    lines = text.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(folder / f"{name}.onnx") for name in ("transformer", "vae_encoder", "vae_decoder")
    ]
    record = json.loads((folder / "export.json").read_text())
    for graph, line in zip(record["graphs"].values(), lines, strict=True):
        assert 0 <= graph["largest_difference"] < 1e-4
        assert f"largest difference from PyTorch {graph['largest_difference']:.1e}" in line
    assert record["graphs"]["transformer"]["inputs"]["latents"] == {"shape": ["B", 4, 4, 16, 16], "dtype": "float32"}
    assert record["roles"]["GENERATE"] == 0


@pytest.mark.slow
def test_sampling_without_pytorch(exported: tuple[Path, str], tiny_pipeline_dir: Path) -> None:
    """From a category, and from RGB: Euler steps in numpy with the three graphs, against the pipeline."""
    folder, _ = exported
    step, encode, decode = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("transformer", "vae_encoder", "vae_decoder")
    )
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(3, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    labels, times = [5, 2, 0], [1.0, 0.75, 0.5, 0.25, 0.0]
    x = noise.numpy()
    for t, following in pairwise(times):
        inputs = {"latents": x, "timesteps": np.full((3, 4), t, np.float32), "roles": np.zeros((3, 4), np.int64)}
        (velocity,) = step.run(None, {**inputs, "class_labels": np.array(labels)})
        x = x + np.float32(following - t) * velocity
    out = pipe(labels, latents=noise, num_inference_steps=4, guidance_scale=1.0, output_type="latent")
    np.testing.assert_allclose(x, out.latents.numpy(), atol=2e-4)
    (images,) = decode.run(None, {"latents": x})
    rgb = pipe(labels, latents=noise, num_inference_steps=4, guidance_scale=1.0, output_type="np").rgb
    np.testing.assert_allclose(((images[:, 0].transpose(0, 2, 3, 1) + 1) / 2).clip(0, 1), rgb, atol=3e-3)  # of 8 bits

    pictures = np.random.default_rng(0).uniform(-1, 1, (1, 4, 3, 64, 64)).astype(np.float32)
    (latents,) = encode.run(None, {"images": pictures})
    t = np.full((1, 4), 1.0, np.float32)
    t[:, 0] = 0.005
    x = noise[:1].numpy().copy()
    x[:, 0] = (1 - 0.005) * latents[:, 0] + 0.005 * x[:, 0]
    roles = np.array([[1, 0, 0, 0]])
    (velocity,) = step.run(None, {"latents": x, "timesteps": t, "roles": roles, "class_labels": np.array([-1])})
    rgb = (pictures[0, 0].transpose(1, 2, 0) + 1) / 2
    out = pipe(conditions={"rgb": rgb}, latents=noise[:1], output_type="latent")
    np.testing.assert_allclose((x - velocity)[:, 1:], out.latents.numpy()[:, 1:], atol=5e-4)


@pytest.mark.slow
@torch.no_grad()
def test_a_prompt_without_pytorch(mmdit: Callable[..., Any], prompted_pipeline_dir: Path) -> None:
    """A model of prompts has a graph for labels, as others have, and one for encoded prompts of any length."""
    made = mmdit("export", "onnx", "--model", prompted_pipeline_dir, "--output", "out")
    assert made.code == 0, made.error
    folder = Path("out")
    assert {path.name for path in folder.iterdir() if not path.name.endswith(".data")} == FILES | {
        "transformer_prompt.onnx"
    }
    inputs = json.loads((folder / "export.json").read_text())["graphs"]["transformer_prompt"]["inputs"]
    assert inputs["tokens"] == {"shape": ["B", "tokens", 16], "dtype": "float32"}
    pipe = MultimodalDiTPipeline.from_pretrained(prompted_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    step = onnxruntime.InferenceSession(folder / "transformer_prompt.onnx")
    noise = torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for prompt in ("a red cone", "a blue torus left of a red cone"):
        asked = pipe.encode_prompt(prompt).conditioning
        assert asked.tokens is not None
        assert asked.token_mask is not None
        t, roles = np.ones((1, 4), np.float32), np.zeros((1, 4), np.int64)
        given = {"vector": asked.vector, "tokens": asked.tokens, "token_mask": asked.token_mask}
        (velocity,) = step.run(
            None, {"latents": noise.numpy(), "timesteps": t, "roles": roles} | {k: v.numpy() for k, v in given.items()}
        )
        out = pipe(prompt=prompt, latents=noise, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
        np.testing.assert_allclose(noise.numpy() - velocity, out.latents.numpy(), atol=5e-4)


def test_bad_input(
    mmdit: Callable[..., Any], tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    command = ("export", "onnx", "--model", tiny_pipeline_dir, "--output")
    refused = mmdit(*command, "mine")
    assert (refused.code, (tmp_path / "mine/thesis.txt").read_text()) == (2, "years")
    assert "mine: holds 'thesis.txt', which is no file of an export: choose another --output" in refused.error
    assert mmdit("export", "onnx").error.endswith("missing --output; see 'mmdit export onnx --help'")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name, *rest)
    )
    refused = mmdit(*command, "out")
    assert refused.code == 2
    assert refused.error.endswith("export needs onnxscript: pip install 'multimodal-dit[onnx]'")
    assert not (tmp_path / "out").exists()
