from __future__ import annotations

import argparse
import ctypes
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from official_networks import random_state
from PIL import Image
from safetensors.torch import load_file

from mmdit.cli.convert import convert
from mmdit.models.convert import convert_state_dict

ROOT = str(Path(__file__).parents[2])
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write a training checkpoint as the official code does, and return its path."""

    def write(format: str = "mmgen", as_namespace: bool = True, drop: tuple[str, ...] = (), **arguments: Any) -> Path:
        args = {"model": "SiT-XL/2", "encoder_depth": 1, "path_type": "linear", "prediction": "v"} | arguments
        content = {
            "model": random_state(format, seed=1),
            "ema": random_state(format, seed=0),
            "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
            "args": argparse.Namespace(**args) if as_namespace else args,
            "steps": 3,
        }
        path = tmp_path / f"{format}.pt"
        torch.save({key: value for key, value in content.items() if key not in drop}, path)
        return path

    return write


@pytest.mark.parametrize(("weights", "seed"), [("ema", 0), ("model", 1)])
def test_chosen_weights_are_in_the_folder(mmdit, checkpoint, vae, weights, seed):
    options = ("--output", "out", "--vae", vae, "--num_heads", 2)
    result = mmdit("convert", "mmgen", checkpoint(), *options, *(["--weights", weights] if weights == "model" else []))
    assert result.code == 0, result.err
    assert result.out.startswith("out: rgb, depth, normal, segmentation; ")
    expected = convert_state_dict("mmgen", random_state("mmgen", seed=seed), {"encoder_depth": 1}, 2).state_dict
    saved = load_file(f"out/{WEIGHTS}")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in saved)
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


def test_every_command_uses_it(mmdit, checkpoint, vae):
    assert mmdit("convert", "mmgen", checkpoint(), "--output", "out", "--vae", vae, "--num_heads", 2).code == 0
    index = json.loads(Path("out/model_index.json").read_text())
    assert index["modalities"]["depth"]["quantiles"] == [0.0, 1.0]  # MMGen's depth: disparity from smallest to largest
    options = ("--model", "out", "--num_inference_steps", 2)
    result = mmdit("generate", "3", *options, "--output", "generated", "--scheduler", "euler_maruyama")
    assert result.code == 0, result.err
    sample = Path(result.out.strip())
    assert Image.open(sample / "rgb.png").size == (16, 16)
    assert mmdit("understand", sample / "rgb.png", *options, "--output", "understood").code == 0
    assert mmdit("condition", "--depth", sample / "depth.npy", *options, "--output", "conditioned").code == 0


@pytest.mark.parametrize("format", ["repa", "sit"])
def test_one_modality_generates(mmdit, checkpoint, vae, format):
    path = checkpoint(format, as_namespace=False)  # newer checkpoints hold the arguments as a dictionary
    assert mmdit("convert", format, path, "--output", "out", "--vae", vae, "--num_heads", 2).code == 0
    result = mmdit("generate", "3", "--model", "out", "--num_inference_steps", 1)
    assert result.code == 0, result.err
    assert sorted(path.name for path in Path(result.out.strip()).iterdir()) == ["grid.png", "metadata.json", "rgb.png"]


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_alone_with_imagenets_classes(mmdit, vae, zipped):
    torch.save(random_state("sit", num_labels=1001), "sit.pt", _use_new_zipfile_serialization=zipped)
    result = mmdit("convert", "sit", "sit.pt", "--output", "deep/out", "--vae", vae, "--num_heads", 2)
    assert result.code == 0, result.err
    labels = json.loads(Path("deep/out/model_index.json").read_text())["id2label"]
    assert len(labels) == 1000
    assert labels["207"] == "golden retriever"


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch was_run",)


def _not_zip(path: str) -> None:
    Path(path).write_text("not a checkpoint")


def _truncated(path: str) -> None:
    torch.save({"ema": random_state("mmgen")}, path)
    Path(path).write_bytes(Path(path).read_bytes()[:5000])


def _other_zip(path: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


def _bare_pickle(path: str) -> None:
    Path(path).write_bytes(pickle.dumps({"ema": Malicious()}))


def _saves(value: Any) -> Callable[[str], None]:
    return lambda path: torch.save(value, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "bad.pt: no such file"),
        (_not_zip, "bad.pt: is not a checkpoint of PyTorch, or damaged"),
        (_bare_pickle, "bad.pt: is not a checkpoint of PyTorch, or damaged (Unsupported operand"),
        (lambda path: Path(path).touch(), "bad.pt: the file is empty"),
        (_truncated, "bad.pt: is not a checkpoint of PyTorch, or damaged"),
        (_other_zip, "bad.pt: is not a checkpoint of PyTorch, or damaged"),
        (_saves({"ema": random_state("mmgen"), "args": Malicious()}), "can run code, and is not loaded"),
        (_saves(torch.zeros(3)), "holds a Tensor, not a dictionary"),
        (_saves({"state_dict": {"a": torch.zeros(1)}}), "'state_dict' is a dict"),
        (_saves({"ema": {"a": torch.zeros(1, dtype=torch.long)}}), "'a' is a tensor of torch.int64"),
        (_saves({"ema": {}}), "its weights are a dict"),
        (_saves({"model": random_state("mmgen")}), "has no 'ema' weights; it holds model"),
        (_saves(random_state("sit")), "bad.pt: this is a checkpoint in format 'sit'"),
        (_saves({"ema": random_state("mmgen") | {"extra": torch.zeros(1)}}), "unknown keys: extra"),
        (_saves(random_state("mmgen", hidden_size=16)), "a width of 16 is not S, B, L or XL"),
    ],
)
def test_bad_checkpoints_are_one_line_and_exit_2(mmdit, write, message):
    write("bad.pt")
    result = mmdit("convert", "mmgen", "bad.pt", "--output", "out")
    assert result.code == 2
    assert message in result.error
    assert not Path("out").exists()
    assert not Path("was_run").exists()


def test_other_bad_options(mmdit, checkpoint, vae, tmp_path):
    path = checkpoint()
    assert "FORMAT: expected one of" in mmdit("convert", "mmgan", path, "--output", "out").error
    assert "--num_heads is 0" in mmdit("convert", "mmgen", path, "--output", "out", "--num_heads", 0).error
    options = ("convert", "mmgen", path, "--output", "out", "--num_heads", 2)
    assert "--vae 'nowhere' is not a folder" in mmdit(*options, "--vae", "nowhere").error
    config = json.loads((vae / "config.json").read_text())
    other = tmp_path / "other_vae"
    AutoencoderKL.from_config({**config, "scaling_factor": 0.13025}).save_pretrained(other)
    assert "scales its latents by 0.13025" in mmdit(*options, "--vae", other).error
    AutoencoderKL.from_config({**config, "latent_channels": 16}).save_pretrained(tmp_path / "wide_vae")
    assert "has latents of 16 channels" in mmdit(*options, "--vae", tmp_path / "wide_vae").error
    assert "mmgen.pt is not a folder" in mmdit(*options, "--vae", vae, "--output", "mmgen.pt/out").error
    assert not Path("out").exists()
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    result = mmdit(*options, "--vae", vae)
    assert result.code == 2
    assert "--output out exists already" in result.error
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]


def test_full_disk_is_told_before_writing(mmdit, checkpoint, vae, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    result = mmdit("convert", "mmgen", checkpoint(), "--output", "out", "--vae", vae, "--num_heads", 2)
    assert result.code == 2
    assert "--output out needs 0.0 GB of disk" in result.error
    assert not Path("out").exists()


def test_weights_that_are_not_finite_leave_nothing_behind(mmdit, vae):
    state = random_state("sit", num_labels=6)
    state["blocks.0.mlp.fc2.weight"][3, 2] = float("nan")
    torch.save(state, "sit.pt")
    result = mmdit("convert", "sit", "sit.pt", "--output", "out", "--vae", vae, "--num_heads", 2)
    assert result.code == 2
    assert "the weights hold NaN or infinity, in blocks.0.mlp.fc2.weight" in result.error
    assert [path.name for path in Path().iterdir()] == ["sit.pt"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(mmdit, vae, dtype):
    state = {key: tensor.to(dtype) for key, tensor in random_state("mmgen").items()}
    torch.save({"ema": state, "args": {"encoder_depth": 1}}, "half.pt")
    Path(".out.tmp").mkdir()
    Path(".out.tmp/left").write_text("by a conversion that was killed")
    result = mmdit("convert", "mmgen", "half.pt", "--output", "out", "--vae", vae, "--num_heads", 2)
    assert result.code == 0, result.err
    saved = load_file(f"out/{WEIGHTS}")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32 if dtype == torch.float64 else dtype}
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(saved[key], state[key].to(saved[key].dtype))
    assert sorted(path.name for path in Path().iterdir()) == ["half.pt", "out"]


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_chosen_weights(tmp_path, vae):
    """At most 1.3 times the averaged weights; the raw ones beside them are never read.

    Pages of the checkpoint are let go of as they are written, so it is less where they can be: not those of a file that is
    itself still being written to the disk.
    """
    state = random_state("repa", hidden_size=384, depth=7)
    num_bytes = sum(tensor.nbytes for tensor in state.values())
    path = tmp_path / "large.pt"
    args = argparse.Namespace(encoder_depth=1)
    torch.save({"model": {key: tensor + 1 for key, tensor in state.items()}, "ema": state, "args": args}, path)
    del state
    convert("repa", path, tmp_path / "first", str(vae))  # imports, and allocators that have had their fill
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory("VmRSS:")
    convert("repa", path, tmp_path / "second", str(vae))
    growth = (_memory("VmHWM:") - before) / num_bytes
    print(f"peak memory: {growth:.2f} x {num_bytes / 2**20:.0f} MiB")
    assert num_bytes > 60e6
    assert growth < 1.3


def test_a_flipped_bit_is_refused(mmdit, checkpoint, vae):
    """A bad download: the weights load, as another model, but the archive's checksum tells."""
    path = checkpoint()
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 2000] ^= 0x40
    path.write_bytes(bytes(content))
    result = mmdit("convert", "mmgen", path, "--output", "out", "--vae", vae, "--num_heads", 2)
    assert result.code == 2
    assert f"the checksum of its part {largest.filename} is wrong" in result.error
    assert not Path("out").exists()


def test_a_second_conversion_into_the_folder_is_refused(mmdit, checkpoint, vae):
    options = ("convert", "mmgen", checkpoint(), "--output", "out", "--vae", vae, "--num_heads", 2)
    code = (
        "import sys, time; from mmdit.storage.lock import FolderLock\nwith FolderLock('.out.lock', 'mmdit convert'):\n"
    )
    code += "    print('held', flush=True); time.sleep(600)"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    )
    try:
        assert other.stdout.readline() == b"held\n"
        result = mmdit(*options)
        assert result.code == 2
        assert f"'mmdit convert' (process {other.pid} on " in result.error
        assert not Path("out").exists()
    finally:
        other.kill()
        other.wait()
    assert Path(".out.lock").exists()  # what the dead process left is taken over
    assert mmdit(*options).code == 0


@pytest.mark.parametrize("args", [3, ["a"], {"cfg_prob": "much"}, {"num_classes": "x"}])
def test_training_arguments_of_another_kind(mmdit, vae, args):
    torch.save({"ema": random_state("mmgen"), "args": args}, "odd.pt")
    result = mmdit("convert", "mmgen", "odd.pt", "--output", "out", "--vae", vae, "--num_heads", 2)
    assert result.code == 2
    assert "odd.pt: its training arguments are " in result.error


def test_a_pipe_is_no_checkpoint(mmdit):
    os.mkfifo("pipe.pt")
    result = mmdit("convert", "mmgen", "pipe.pt", "--output", "out")
    assert result.code == 2
    assert "pipe.pt: is a pipe" in result.error
