"""Files of weights are whole, of floating point and finite, and described by their configuration, before any is loaded."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT
from mmdit.storage.component import check_component, load_component
from mmdit.storage.weights import check_archive, is_finite, read_header, refuse_integers, refuse_non_finite

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MultimodalDiT(sample_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=3).save_pretrained(tmp_path / "t")
    return tmp_path / "t"


def test_a_whole_folder_loads(folder: Path) -> None:
    assert check_component(folder, MultimodalDiT)["hidden_size"] == 16
    state = load_component(folder, MultimodalDiT).state_dict()
    stored = load_file(folder / WEIGHTS)
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 999_999_996}, r"hidden_size is 999999996, but its weights have no side longer than \d+"),
        ({"hidden_size": 32}, r"weights are not those of its config\.json: .* is \d+.* there, \d+.* by the config"),
        ({"hidden_size": "16"}, 'hidden_size is "16": give a whole number'),
        ({"hidden_size": True}, "hidden_size is true: give a whole number"),
        ({"hidden_size": 16.5}, "hidden_size is 16.5: give a whole number"),
        ({"hidden_size": None}, "no MultimodalDiT has such a configuration"),
        ({"hidden_size": -16}, "no MultimodalDiT has such a configuration"),
        ({"num_classes": 10**9}, "num_classes is 1000000000"),
        ({"num_classes": 10**400}, "num_classes is "),
        ({"num_heads": 0}, "no MultimodalDiT has such a configuration"),
        ({"depth": 10**9}, r"depth is 1000000000, but its weights are \d+ tensors"),
        ({"depth": 5000}, r"depth is 5000, but its weights are \d+ tensors"),
        ({"depth": 3}, r"the weights lack 'blocks\.2\."),
        ({"depth": 1}, r"the weights hold 'blocks\.1\..*' besides"),
        ({"mlp_ratio": 1e300}, "mlp_ratio is 1e\\+300: give a number"),
        ({"modalities": ["rgb", 3]}, "modalities is .*: give a list, each a text"),
        ({"modalities": "rgb"}, 'modalities is "rgb": give a list'),
        ({"modalities": ["rgb"] * 10**5}, "modalities is a list of 100000 values"),
        ({"position_embedding": "payload.X"}, "unknown position_embedding 'payload.X'"),
        ({"_class_name": ["payload", "X"]}, "_class_name is .*, not 'MultimodalDiT'"),
        ({"auto_map": {"AutoModel": "payload.X"}}, "'auto_map' would have other code load this folder"),
        ({"quantization_config": {"quant_method": "x"}}, "'quantization_config' would have other code"),
    ],
)  # fmt: skip
def test_configurations_that_are_not_the_weights(folder: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as caught:
        check_component(folder, MultimodalDiT)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1, "a": 2}', "[" * 100_000, "\xff"])
def test_configurations_that_are_no_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json: "):
        check_component(folder, MultimodalDiT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite(folder: Path, value: float, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    state["blocks.1.mlp.fc1.weight"].view(-1)[7] = value
    save_file(state, folder / WEIGHTS)
    check_component(folder, MultimodalDiT)
    with pytest.raises(UserError, match=r"t: weight blocks\.1\.mlp\.fc1\.weight holds NaN or infinity"):
        load_component(folder, MultimodalDiT)


def test_weights_too_large_for_half_precision(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["role_embed.base"][0] = 1e6
    save_file(state, folder / WEIGHTS)
    load_component(folder, MultimodalDiT)
    with pytest.raises(UserError, match=r"role_embed\.base holds NaN or infinity as float16.*--dtype float32"):
        load_component(folder, MultimodalDiT, torch_dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_integers(folder: Path, dtype: torch.dtype) -> None:
    state = load_file(folder / WEIGHTS)
    state["role_embed.base"] = state["role_embed.base"].to(dtype)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"role_embed\.base is of .*; weights are BF16, F16, F32, F64"):
        check_component(folder, MultimodalDiT)


def _edit_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return edit


def _entry(name: str, **values: Any) -> Callable[[bytes], bytes]:
    return _edit_header(lambda header: header[name].update(values))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-4],
        lambda content: content + bytes(4),
        lambda content: b"",
        lambda content: content[:8],
        lambda content: (2**63).to_bytes(8, "little") + content[8:],
        lambda content: (10**7).to_bytes(8, "little") + content[8:],
        _entry("role_embed.base", shape=[2**40]),
        _entry("role_embed.base", shape=[2**63, 2**63]),
        _entry("role_embed.base", shape=[-16]),
        _entry("role_embed.base", shape="16"),
        _entry("role_embed.base", data_offsets=[0, 64]),
        _entry("role_embed.base", data_offsets=[64, 0]),
        _entry("role_embed.base", dtype="X99"),
        _edit_header(lambda header: header.update(a=3)),
    ],
)  # fmt: skip
def test_headers_that_do_not_describe_the_file(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="truncated or damaged safetensors file"):
        check_component(folder, MultimodalDiT)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "w.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UserError, match="no such file" if kind == "nothing" else f"is a .*{kind}.*, not a file"):
        read_header(path)


def test_every_flipped_bit_of_an_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(64.0), "b": torch.ones(3)}, path)
    check_archive(path)
    whole = path.read_bytes()
    num_found = 0
    for offset in range(0, len(whole), 17):
        changed = bytearray(whole)
        changed[offset] ^= 1 << (offset % 8)
        path.write_bytes(bytes(changed))
        os.utime(path, ns=(offset, offset))
        try:
            check_archive(path)
        except ValueError:
            num_found += 1
            continue
        try:
            loaded = torch.load(path, weights_only=True)
        except Exception:  # names and sizes of parts: PyTorch itself finds these
            continue
        # Padding between the parts holds no values: what is loaded is the same.
        assert torch.equal(loaded["a"], torch.arange(64.0))
        assert torch.equal(loaded["b"], torch.ones(3))
    assert num_found > 20


def test_finite_is_exact() -> None:
    assert is_finite(torch.tensor([1e38, -3e38]))
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.tensor([1, 2]))
    for value in ("nan", "inf", "-inf"):
        assert not is_finite(torch.tensor([0.0, float(value), 1.0]))
    with pytest.raises(UserError, match="x: weight a holds NaN"):
        refuse_non_finite([("a", torch.tensor(float("nan")))], "x")
    layer = torch.nn.BatchNorm1d(2)
    refuse_integers(layer.state_dict(), layer, "x")  # counts its batches with an integer of its own
    with pytest.raises(UserError, match=r"x: weight weight is of torch\.int64"):
        refuse_integers(layer.state_dict() | {"weight": torch.ones(2, dtype=torch.int64)}, layer, "x")
