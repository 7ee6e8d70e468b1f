"""Given files, damaged in thousands of ways: read, or refused in one line that names the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("hypothesis")
from fuzzing import SEEDED, damaged
from hypothesis import given
from hypothesis import strategies as st

from mmdit.cli.common.inputs import read_condition
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codec


def _png(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


RNG = np.random.default_rng(0)
PNGS = [
    _png(RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)),
    _png(RNG.integers(0, 2**16, (6, 5)).astype(np.uint16)),
    _png(RNG.integers(0, 64, (6, 5), dtype=np.uint8)),
    _png(RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)),
]
NPYS = [
    _npy(RNG.random((6, 5), dtype=np.float32)),
    _npy(RNG.normal(size=(6, 5, 3))),
    _npy(RNG.integers(0, 64, (6, 5))),
    _npy(np.array([["a"]])),
    _npy(np.zeros((6, 5), dtype=complex)),
    _npy(np.zeros(3, dtype=[("x", "f4")])),
]


def _read(path: Path, content: bytes, name: str) -> None:
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codec = build_codec(MODALITIES[name])
            encoded = codec.encode_reading(read_condition(path, codec))
    except UserError as error:
        assert "\n" not in str(error)
        assert path.name in str(error)
        return
    assert encoded.shape[0] == 3
    assert encoded.isfinite().all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@SEEDED
@given(content=damaged(PNGS), name=st.sampled_from(list(MODALITIES)))
def test_png(folder: Path, content: bytes, name: str) -> None:
    _read(folder / "given.png", content, name)


@SEEDED
@given(content=damaged(NPYS), name=st.sampled_from(list(MODALITIES)))
def test_npy(folder: Path, content: bytes, name: str) -> None:
    _read(folder / "given.npy", content, name)
