"""Wrong input: one line that names the file or option, exit code 2, no traceback."""

from __future__ import annotations

import io
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image


def _bomb() -> bytes:
    """A PNG header that promises 20000 x 20000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(20001))) + chunk(b"IEND", b"")


def _truncated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()[:3000]


BAD_FILES = {
    "empty.png": (b"", "empty"),
    "truncated.png": (_truncated(), "truncated"),
    "text.png": (b"not an image at all", "not an image"),
    "bomb.png": (_bomb(), "pixels"),
}


@pytest.mark.parametrize(("value", "right"), [("foo", "auto, triton, torch"), ("Torch", "did you mean 'torch'")])
def test_unknown_kernels(mmdit, tmp_path, monkeypatch, value, right):
    monkeypatch.setenv("MMDIT_KERNELS", value)
    for command in (("generate", "torus"), ("train", "--output", tmp_path / "run")):
        result = mmdit(*command)
        assert result.code == 2
        for text in ("MMDIT_KERNELS", repr(value), right):
            assert text in result.error


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_image(mmdit, tmp_path, name):
    content, expected = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    result = mmdit("understand", name)
    assert result.code == 2
    assert name in result.error
    assert expected in result.error
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("option", ["depth", "normal", "segmentation", "rgb"])
def test_bad_condition(mmdit, tiny_pipeline_dir, tmp_path, name, option):
    content, expected = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    result = mmdit("condition", f"--{option}", name, "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert name in result.error
    assert expected in result.error


def test_missing_files(mmdit, tmp_path):
    assert "nowhere.png: no such image or folder" in mmdit("understand", "nowhere.png").error
    assert "--depth nowhere.npy: no such file" in mmdit("condition", "--depth", "nowhere.npy").error
    (tmp_path / "empty").mkdir()
    assert "--rgb empty: is a folder; give a file" in mmdit("condition", "--rgb", "empty").error
    result = mmdit("understand", "empty")
    assert result.code == 2
    assert "empty: the folder holds no image" in result.error


def test_bad_file_in_a_folder_is_reported_and_the_rest_is_done(mmdit, tiny_pipeline_dir, tmp_path, photo):
    (tmp_path / "in").mkdir()
    shutil.copy(photo, tmp_path / "in")
    for name in ("empty.png", "void.png"):
        (tmp_path / "in" / name).touch()
    result = mmdit("understand", "in", "--model", tiny_pipeline_dir, "--output", "out")
    assert result.code == 2
    assert "2 of 3 images left out: in/empty.png" in result.error
    assert "note: left out: in/void.png: the file is empty" in result.err
    assert (tmp_path / "out" / "photo" / "depth.npy").exists()


def test_folder_of_bad_files_only(mmdit, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).touch()
    result = mmdit("understand", "in")
    assert result.code == 2
    assert "none of the 2 images" in result.error


def test_depth_with_nan(mmdit, tiny_pipeline_dir, tmp_path):
    depth = np.full((64, 64), 0.5, dtype=np.float32)
    depth[0, :7] = np.nan
    np.save(tmp_path / "d.npy", depth)
    result = mmdit("condition", "--depth", "d.npy", "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert "d.npy: 7 of 4096 pixels are NaN" in result.error


def test_pickled_array_is_refused(mmdit, tiny_pipeline_dir, tmp_path):
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    result = mmdit("condition", "--depth", "d.npy", "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert "d.npy" in result.error


def test_conditions_of_different_sizes(mmdit, tiny_pipeline_dir, tmp_path, photo):
    np.save(tmp_path / "d.npy", np.full((64, 64), 0.5, dtype=np.float32))
    result = mmdit("condition", "--depth", "d.npy", "--rgb", photo, "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert "--rgb 40 x 60, --depth 64 x 64" in result.error


def test_nothing_or_everything_given(mmdit, tiny_pipeline_dir, tmp_path, photo):
    assert "nothing is given: give at least one of --rgb" in mmdit("condition").error
    (tmp_path / "x.png").touch()
    everything = [f"--{name}=x.png" for name in ("rgb", "depth", "normal", "segmentation")]
    result = mmdit("condition", *everything, "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert "leave out at least one" in result.error


def test_unknown_category(mmdit, tiny_pipeline_dir):
    result = mmdit("generate", "torsu", "--model", tiny_pipeline_dir)
    assert result.code == 2
    assert "unknown category 'torsu': did you mean 'torus'?" in result.error
    assert "give 0 to 9" in mmdit("generate", "99", "--model", tiny_pipeline_dir).error
    assert "unknown category '٥'" in mmdit("generate", "٥", "--model", tiny_pipeline_dir).error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--num_inference_steps", "0"), "--num_inference_steps is 0: give 1 to 10000"),
        (("--num_inference_steps", "-3"), "--num_inference_steps is -3"),
        (("--num_images", "0"), "--num_images is 0"),
        (("--seed", "-1"), "--seed is -1"),
        (("--guidance_scale", "nan"), "--guidance_scale is nan: give a number, at least 0"),
        (("--guidance_scale", "-1"), "--guidance_scale is -1"),
        (("--device", "tpu"), "--device 'tpu'"),
        (("--device", "cuda:77"), "--device 'cuda:77'"),
        (("--device", "meta"), "--device 'meta'"),
        (("--model", "nowhere"), "no model 'nowhere'"),
        (("--model", "./nowhere"), "no model './nowhere'"),
        (("--model", "."), "model_index.json: no such file; give a model's folder, as training"),
    ],
)
def test_option_out_of_range(mmdit, arguments, expected):
    result = mmdit("generate", "torus", *arguments)
    assert result.code == 2
    assert expected in result.error


def test_unknown_scheduler(mmdit, tiny_pipeline_dir):
    result = mmdit("generate", "torus", "--model", tiny_pipeline_dir, "--scheduler", "eulr")
    assert result.code == 2
    assert "did you mean 'euler'?" in result.error


def test_output_is_a_file(mmdit, photo):
    result = mmdit("generate", "torus", "--output", photo)
    assert result.code == 2
    assert f"{photo}: is a file" in result.error


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "transformer" / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json: no such file"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "not readable as JSON"),
        (lambda folder: (folder / "vae" / "pytorch_model.bin").write_bytes(b"\x80\x04."), "pickled weights"),
        (
            lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{"),
            "truncated or damaged",
        ),
    ],
)
def test_damaged_model_folder(mmdit, tiny_pipeline_dir, tmp_path, damage, expected):
    shutil.copytree(tiny_pipeline_dir, tmp_path / "model")
    damage(tmp_path / "model")
    result = mmdit("generate", "torus", "--model", "model")
    assert result.code == 2
    assert expected in result.error


def test_what_was_guessed_is_said_where_nothing_is_refused(mmdit, tiny_pipeline_dir, tmp_path):
    rows = np.linspace(9000, 1000, 64).astype(np.uint16)[:, None].repeat(64, axis=1)
    Image.fromarray(rows).save(tmp_path / "d.png")
    arguments = ("condition", "--depth", "d.png", "--model", tiny_pipeline_dir, "--num_inference_steps")
    assert "mmdit: note: d.png: read as distances" in mmdit(*arguments, 1).err
    refused = mmdit(*arguments, 2)
    assert refused.code == 2
    assert refused.err.splitlines() == [refused.error]
