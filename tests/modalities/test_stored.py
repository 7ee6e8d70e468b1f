"""Files, opened safely."""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.rgb import read_picture


@pytest.mark.parametrize("name", ["depth", "segmentation"])
def test_three_channels_are_no_map(tmp_path, name, load, save):
    with pytest.raises(UserError, match=r"a\.png.*one channel.*'RGB'"):
        load(save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8)), name)


def test_broken_files_are_named(tmp_path, rng, monkeypatch, save):
    good = save(tmp_path / "good.png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    for name, reason in [("gone", "no such file"), ("empty", "empty"), ("text", "not an image"), ("cut", "truncated")]:
        with pytest.raises(UserError, match=rf"{name}\.png.*{reason}"):
            read_picture(tmp_path / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1024 pixels only warn in Pillow, 2 x the limit raises
    with pytest.raises(UserError, match=r"good\.png.*more than 1000 pixels"):
        read_picture(good)


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2)), np.array(["a"]), np.zeros(4), np.zeros((0, 2))])
def test_npy_of_the_wrong_kind_is_named(tmp_path, array, load):
    np.save(tmp_path / "d.npy", array)
    with pytest.raises(UserError, match=r"d\.npy"):
        load(tmp_path / "d.npy", "depth")


def test_npy_that_is_text_or_beyond_float32(tmp_path, load):
    (tmp_path / "text.npy").write_text("1.0 2.0")
    with pytest.raises(UserError, match=r"text\.npy: not a readable \.npy array: it holds no array of numbers$"):
        load(tmp_path / "text.npy", "depth")
    np.save(tmp_path / "d.npy", np.array([[1e300, 2.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "d.npy", "depth").tolist() == [[np.inf, 2.0]]


def test_pickled_npy_is_refused(tmp_path, load):
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"d\.npy"):
        load(tmp_path / "d.npy", "depth")


def _header(path: Path, shape: tuple[int, ...], descr: str = "<f4") -> Path:
    """A ``.npy`` file of a header and nothing else."""
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    return path


@pytest.mark.parametrize("shape", [(10**6, 10**6), (10**12, 2), (2**62, 2**62), (4, 4), (-1, 4)])
def test_what_an_array_declares_is_checked_before_memory_is_taken(tmp_path, shape, load):
    path = _header(tmp_path / "d.npy", shape)
    with pytest.raises(UserError, match=r"d\.npy: (truncated or damaged|not a readable)"):
        load(path, "depth")


def test_what_an_archive_declares_is_checked_before_memory_is_taken(tmp_path, load):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(_header(tmp_path / "h.npy", (10**6, 10**6)), "depth.npy")
    with pytest.raises(UserError, match=r"d\.npz: truncated or damaged: it declares float32 \(1000000, 1000000\)"):
        load(path, "depth")
    np.savez_compressed(path, depth=np.ones((3, 4)))
    assert load(path, "depth").tolist() == np.ones((3, 4)).tolist()
    np.savez(path, a=np.ones((3, 4)), b=np.ones((3, 4)))
    with pytest.raises(UserError, match=r"d\.npz: holds 2 arrays"):
        load(path, "depth")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), [("a", "f4")]),
        np.ones((4, 4), complex),
        np.full((4, 4), np.datetime64("2020-01-01")),
        np.full((4, 4), np.timedelta64(1, "s")),
        np.full((4, 4), "abc"),
        np.full((4, 4), b"abc"),
        np.ones((4, 4), bool),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_no_numbers_are_refused_in_one_line(tmp_path, array, load):
    np.save(tmp_path / "d.npy", array)
    with pytest.raises(UserError, match=r"d\.npy: holds .* \(4, 4\); give numbers") as error:
        load(tmp_path / "d.npy", "depth")
    assert "\n" not in str(error.value)


def test_what_a_png_declares_is_checked_before_memory_is_taken(tmp_path, save):
    content = bytearray(save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8)).read_bytes())
    content[16:24] = (9000).to_bytes(4, "big") * 2  # IHDR: width and height
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png: truncated or damaged image: it declares 9000 x 9000 pixels"):
        read_picture(tmp_path / "a.png")


def test_a_large_image_of_one_colour_is_no_fault(tmp_path, save):
    for mode, dtype in ((None, np.uint8), ("1", bool)):
        pixels = np.zeros((2000, 3000), dtype)
        path = tmp_path / "a.png"
        (Image.fromarray(pixels) if mode is None else Image.new("1", (3000, 2000))).save(path, optimize=True)
        assert read_picture(path).shape == (2000, 3000, 3)


def test_a_changed_pixel_of_a_png_is_seen(tmp_path, save):
    rng = np.random.default_rng(0)
    path = save(tmp_path / "a.png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    good = path.read_bytes()
    for place in rng.integers(41, len(good) - 20, 20):  # inside IDAT
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(UserError, match=r"a\.png: truncated or damaged"):
            read_picture(path)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path, kind in (
        (tmp_path / "a.png", "a FIFO"),
        (Path("/dev/null"), "a FIFO, socket or device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(UserError, match=f"is {kind}.*; give a file"):
            read_picture(path)
    with pytest.raises(UserError, match="no such file"):
        read_picture(tmp_path / "a.png" / "b.png")
    with pytest.raises(UserError, match="can't be opened"):
        read_picture(tmp_path / ("a" * 300 + ".png"))
    (tmp_path / "dangling.png").symlink_to("nowhere")
    with pytest.raises(UserError, match="no such file"):
        read_picture(tmp_path / "dangling.png")


def test_endings_in_capitals(tmp_path, save, load):
    np.save(tmp_path / "d.npy", np.ones((2, 3)))
    (tmp_path / "d.npy").rename(tmp_path / "D.NPY")
    assert load(tmp_path / "D.NPY", "depth").tolist() == np.ones((2, 3)).tolist()
    save(tmp_path / "A.PNG", np.zeros((2, 3, 3), np.uint8))
    assert read_picture(tmp_path / "A.PNG").shape == (2, 3, 3)


def test_damaged_files_of_all_kinds_are_one_line(tmp_path, save, load):
    """Random bytes changed in each format: read, or a UserError of one line that names the file."""
    rng = np.random.default_rng(0)
    lines = []
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", rng.random((16, 16)))
    np.savez_compressed(tmp_path / "a.npz", rng.random((16, 16)))
    for ending in ("png", "tif", "jpg", "gif", "webp", "bmp"):
        save(tmp_path / f"a.{ending}", pixels)
    save(tmp_path / "float.tif", rng.random((16, 16), dtype=np.float32))
    for path in sorted(tmp_path.iterdir()):
        good = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(30):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(bad[: rng.integers(1, len(bad) + 1)].tobytes() if rng.random() < 0.3 else bad.tobytes())
            for name in ("rgb", "depth", "normal", "segmentation"):
                try:
                    load(path, name)
                except UserError as error:
                    lines.append((path, str(error)))
    assert len(lines) > 500
    for path, line in lines:
        assert line.startswith(f"{path}: ")
        assert "\n" not in line
