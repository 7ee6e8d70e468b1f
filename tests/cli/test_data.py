from __future__ import annotations

import importlib.util
import json

import huggingface_hub.constants
import pytest
from safetensors import safe_open

needs_renderer = pytest.mark.skipif(importlib.util.find_spec("mitsuba") is None, reason="needs mitsuba")


@needs_renderer
def test_render_check_and_resume(mmdit, tmp_path):
    arguments = ("data", "render", "--output", "scenes", "--num_samples", 2, "--split", "test", "--num_workers", 0)
    result = mmdit(*arguments)
    assert result.code == 0
    assert "2 scenes rendered, 0 were there" in result.out
    assert "0 scenes rendered, 2 were there" in mmdit(*arguments).out
    checked = mmdit("data", "check", "--data", "scenes")
    assert checked.code == 0
    assert "test 2 samples, nothing wrong" in checked.out
    refused = mmdit(*arguments, "--seed", 1)
    assert refused.code == 2
    assert "seed was 0, now 1" in refused.error


def test_render_without_the_extra(mmdit, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mitsuba" else found(name, *rest)
    )
    result = mmdit("data", "render", "--output", "scenes")
    assert result.code == 2
    assert "pip install 'multimodal-dit[scenes]'" in result.error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--size", "63"), "size 63"),
        (("--num_samples", "0"), "--num_samples is 0: give at least 1"),
        (("--split", "a/b"), "split 'a/b'"),
    ],
)
@needs_renderer
def test_render_refuses_values_out_of_range(mmdit, arguments, expected):
    result = mmdit("data", "render", "--output", "scenes", *arguments)
    assert result.code == 2
    assert expected in result.error


def test_check_lists_bad_samples_and_exits_2(mmdit, make_dataset):
    root = make_dataset(num_samples=3)
    (root / "train" / "rgb" / "001.png").write_bytes(b"")
    (root / "train" / "depth" / "002.png").unlink()
    result = mmdit("data", "check", "--data", root)
    assert result.code == 2
    assert "2 samples" in result.error
    assert "train/001" in result.out
    assert "train/002" in result.out
    assert mmdit("data", "check", "--data", root / "none").code == 2
    assert "no split 'tset'" in mmdit("data", "check", "--data", root, "--split", "tset").error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--depth", "./nowhere"), "--depth './nowhere': no such folder"),
        (("--segmentation", "someone/segments"), "hf download someone/segments --local-dir FOLDER"),
        (("--depth", "none", "--normal", "none", "--segmentation", "none"), "nothing to label"),
        (("--batch_size", "0"), "--batch_size is 0"),
        (("--dtype", "int8"), "--dtype"),
        (("--masks.points", "3"), "'--masks.points_per_side'"),
    ],
)
def test_label_refuses(mmdit, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    base = ("data", "label", "--images", ".", "--output", "out", "--normal", "none")
    base = base if "--depth" in arguments else (*base, "--depth", "none")
    result = mmdit(*base, *arguments)
    assert result.code == 2
    assert expected in result.error
    assert not (tmp_path / "out").exists()


def test_hypersim_refuses(mmdit, tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    result = mmdit("data", "hypersim", "--source", "nowhere", "--output", "out")
    assert result.code == 2
    assert "--source 'nowhere': no such folder" in result.error
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "h5py" else found(name, *rest))
    result = mmdit("data", "hypersim", "--source", tmp_path, "--output", "out")
    assert result.code == 2
    assert "pip install 'multimodal-dit[hypersim]'" in result.error


def test_encode(mmdit, make_dataset, tiny_pipeline_dir, tmp_path):
    root = make_dataset(num_samples=3, size=64)
    arguments = (
        "data",
        "encode",
        "--data",
        root,
        "--output",
        "latents",
        "--vae",
        tiny_pipeline_dir,
        "--accelerator",
        "cpu",
    )
    assert mmdit(*arguments, "--depth_space", "depth").code == 0
    info = json.loads((tmp_path / "latents" / "latents.json").read_text())
    assert "depth" in json.dumps(info["modalities"])
    (shard,) = (tmp_path / "latents" / "train").glob("*.safetensors")
    with safe_open(shard, framework="pt") as file:
        assert tuple(file.get_tensor("rgb").shape) == (3, 2, 8, 16, 16)  # sample, view, 2 C, h, w
    refused = mmdit(*arguments, "--size", "32")
    assert refused.code == 2


@pytest.mark.parametrize(
    ("facts", "given", "space"),
    [
        ({"space": "depth", "metric": False}, (), "depth"),
        ({"space": "depth", "metric": True}, (), "disparity"),
        ({"space": "depth", "metric": False}, ("--depth_space", "disparity"), "disparity"),
        ({}, (), "disparity"),
    ],
)
def test_encode_takes_the_space_of_relative_labels(
    mmdit, make_dataset, tmp_path, tiny_pipeline_dir, facts, given, space
):
    root = make_dataset(num_samples=1, size=64)
    values = json.loads((root / "dataset.json").read_text())
    values["provenance"] = {"generator": "mmdit data label", "labels": {"depth": facts}}
    (root / "dataset.json").write_text(json.dumps(values))
    paths = ("--data", root, "--output", "latents", "--vae", tiny_pipeline_dir)
    result = mmdit("data", "encode", *paths, "--modalities", "[rgb,depth]", "--accelerator", "cpu", *given)
    assert result.code == 0, result.err
    saved = json.loads((tmp_path / "latents" / "latents.json").read_text())
    assert [entry["space"] for entry in saved["modalities"] if entry["name"] == "depth"] == [space]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--vae", "./nowhere"), "--vae './nowhere' is not a folder"),
        (("--vae", "."), "can't be loaded"),
        (("--batch_size", "0"), "--batch_size is 0"),
        (("--devices", "0"), "--devices is 0"),
        (("--modalities", "[rgb,dpeth]"), "'dpeth'"),
        (("--accelerator", "tpu"), "accelerator 'tpu'"),
    ],
)
def test_encode_refuses(mmdit, make_dataset, arguments, expected):
    root = make_dataset(num_samples=1)
    result = mmdit("data", "encode", "--data", root, "--output", "latents", *arguments)
    assert result.code == 2
    assert expected in result.error


def test_encode_needs_a_dataset(mmdit):
    result = mmdit("data", "encode", "--data", "nowhere", "--output", "latents")
    assert result.code == 2
    assert "nowhere" in result.error


def test_encode_names_all_bad_samples_or_leaves_them_out(mmdit, make_dataset, tiny_pipeline_dir, tmp_path):
    root = make_dataset(num_samples=4, size=64)
    (root / "train/rgb/001.png").write_bytes(b"")
    (root / "train/depth/003.png").write_bytes(b"no image")
    arguments = ("data", "encode", "--data", root, "--output", "latents", "--vae", tiny_pipeline_dir)
    result = mmdit(*arguments, "--accelerator", "cpu")
    assert result.code == 2
    listed = [line for line in result.out.splitlines() if line.startswith("train: sample ")]
    assert [line.split("'")[1] for line in listed] == ["001", "003"]
    assert "2 bad samples, listed above" in result.err.splitlines()[-1]
    checked = mmdit("data", "check", "--data", root)
    assert [line.rpartition("(sample train/")[2] for line in checked.out.splitlines()] == ["001)", "003)"]
    result = mmdit(*arguments, "--accelerator", "cpu", "--skip_bad")
    assert result.code == 0
    (shard,) = json.loads((tmp_path / "latents/train/index.json").read_text())["shards"]
    assert shard["ids"] == ["000", "002"]


@pytest.mark.parametrize("command", ["encode", "label", "prompts", "render", "hypersim"])
def test_counts_that_cannot_be_meant_are_refused(mmdit, make_dataset, command):
    paths = {
        "encode": ("--data", make_dataset(num_samples=1)),
        "label": ("--images", "."),
        "prompts": ("--data", "."),
        "render": (),
        "hypersim": ("--source", "."),
    }
    output = () if command == "prompts" else ("--output", "out")
    result = mmdit("data", command, *output, *paths[command], "--num_workers", 10**9)
    assert result.code == 2
    assert "1000000000" in result.error


@needs_renderer
def test_render_of_own_meshes(mmdit, tmp_path):
    folder = tmp_path / "meshes"
    folder.mkdir()
    (folder / "card.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
    (folder / "empty.obj").write_text("")
    arguments = ("data", "render", "--output", "scenes", "--num_samples", 1, "--num_workers", 0, "--assets", folder)
    refused = mmdit(*arguments)
    assert refused.code == 2
    assert f"{folder}/empty.obj: has no faces" in refused.out
    assert "1 meshes can't be used, listed above; --skip_bad leaves them out" in refused.error
    assert "1 scenes rendered, 0 were there" in mmdit(*arguments, "--skip_bad").out
    for options, message in (
        (("--composition", "mixed"), "scenes of --assets have a main object"),
        (("--assets_unit", "mm"), "longest side is 0.001 m"),
        (("--hdri", "gone.exr"), "hdri gone.exr: no such file"),
    ):
        result = mmdit(*arguments, *options)
        assert result.code == 2
        assert message in result.error + result.out
    alone = mmdit("data", "render", "--output", "solids", "--hdri", "sky.exr")
    assert alone.code == 2
    assert "--hdri sky.exr: is for scenes of your own meshes: give --assets" in alone.error


def test_a_problem_of_the_dataset_itself_is_in_no_sample(mmdit, make_dataset):
    root = make_dataset(num_samples=3)
    facts = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**facts, "depth_scale": -1}))
    result = mmdit("data", "check", "--data", root)
    assert result.code == 2
    assert f"{root}: 1 problem, listed above (read: " in result.error
    (root / "dataset.json").write_text(json.dumps(facts))
    (root / "train" / "rgb" / "001.png").write_bytes(b"")
    assert f"{root}: 1 problem in 1 sample, listed above" in mmdit("data", "check", "--data", root).error
