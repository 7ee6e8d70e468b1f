"""Readers of other people's files, on thousands of damaged ones: they read, or refuse in one line, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("hypothesis")
import yaml
from fuzzing import SEEDED, changed_json, damaged
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from mmdit.errors import UserError
from mmdit.storage.json_object import read_object
from mmdit.storage.weights import FLOATING, check_archive, check_dtypes, read_header
from mmdit.storage.yaml_text import load_yaml, read_yaml

ROOT = Path(__file__).parents[2]
CONFIGS = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
SMALL = [b"a: [1, {b: c}]\n", b"x: &a [*a]\n<<: *a\n", b"? [a]\n: !!python/name:os.system x\n"]
JSON = [path.read_bytes() for path in sorted((ROOT / "mmdit/assets/scenes64").rglob("*.json"))]
SAFETENSORS = [
    save({"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(2, dtype=torch.float16)}),
    save({"w": torch.zeros(0), "n": torch.tensor(1.0)}, metadata={"format": "pt"}),
    save({"i": torch.arange(4), "x": torch.ones(3, dtype=torch.bfloat16)}),
]


def one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert 0 < len(str(error)) < 2000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed") / "file"


@SEEDED
@given(
    content=damaged(CONFIGS)
    | damaged([b"a: [1, {b: c}]\n", b"x: &a [*a]\n<<: *a\n", b"? [a]\n: !!python/name:os.system x\n"])
)
def test_yaml_of_damaged_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        values = read_yaml(path)
    except UserError as error:
        one_line(error)
        return
    assert isinstance(values, dict | list | str | int | float | bool | None) or hasattr(values, "isoformat")


@SEEDED
@given(text=st.text(st.sampled_from("ab:-[]{},&*!?|>'\"\n #%@`<~=01.\t\\x"), max_size=60))
def test_yaml_of_its_own_signs(text: str) -> None:
    try:
        load_yaml(text)
    except yaml.YAMLError as error:
        assert str(error)


@SEEDED
@given(content=damaged(JSON) | changed_json([json.loads(text) for text in JSON]).map(lambda v: json.dumps(v).encode()))
def test_json_objects(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        values = read_object(path)
    except UserError as error:
        one_line(error)
        return
    assert isinstance(values, dict)
    json.dumps(values)


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """Damaged bytes, or a whole file whose header was changed as JSON and is as long as it says."""
    if draw(st.booleans()):
        return draw(damaged(SAFETENSORS))
    content = draw(st.sampled_from(SAFETENSORS))
    size = int.from_bytes(content[:8], "little")
    text = json.dumps(draw(changed_json([json.loads(content[8 : 8 + size])]))).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@SEEDED
@given(content=safetensors())
def test_safetensors_headers(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        header = read_header(path)
        check_dtypes(path, header)
    except UserError as error:
        one_line(error)
        return
    tensors = load_file(path)  # what passed is what is loaded
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        n: shape for n, (_, shape) in header.items()
    }
    assert all(dtype in FLOATING for dtype, _ in header.values())
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)


@SEEDED
@given(data=st.data())
def test_archives(path: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = path.with_name("whole.pt")
    if not whole.is_file():
        torch.save({"a": torch.arange(6.0)}, whole)
    path.write_bytes(data.draw(damaged([whole.read_bytes()])))
    try:
        check_archive(path)
    except ValueError as error:
        assert str(error)
