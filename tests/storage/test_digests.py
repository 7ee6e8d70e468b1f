"""Digests change with what they stand for, and with nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from mmdit.storage.digests import digest_file, digest_files, digest_json, digest_tensors

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2])}


def test_tensors_by_name_and_value():
    expected = hashlib.sha256(b"a" + STATE["a"].numpy().tobytes() + b"b" + STATE["b"].numpy().tobytes()).hexdigest()[
        :16
    ]
    assert digest_tensors(STATE) == expected
    assert digest_tensors(dict(reversed(STATE.items()))) == expected
    assert digest_tensors({**STATE, "b": STATE["b"].t().contiguous().t()}) == expected  # strides don't count
    assert digest_tensors({"a": STATE["a"]}, {"b": STATE["b"]}) == expected
    changed = STATE["b"].clone()
    changed[1, 2] += 1e-6
    assert digest_tensors({**STATE, "b": changed}) != expected
    assert digest_tensors({"A": STATE["a"], "b": STATE["b"]}) != expected


def test_precision_and_shape_count_where_asked():
    half = {"b": STATE["b"].half()}
    whole = {"b": STATE["b"]}
    assert digest_tensors(half, dtype=torch.float32) == digest_tensors(whole, dtype=torch.float32)
    assert digest_tensors(half, described=True) != digest_tensors(whole, described=True)
    flat = {"b": STATE["b"].flatten()}
    assert digest_tensors(flat) == digest_tensors(whole)
    assert digest_tensors(flat, described=True) != digest_tensors(whole, described=True)
    assert digest_tensors({"b": STATE["b"].bfloat16()}) != digest_tensors(half)


def test_files(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "sub" / "b").write_bytes(b"y")
    assert digest_file(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    expected = hashlib.sha256(b"a" + b"x" * 3_000_000 + b"sub/b" + b"y").hexdigest()
    assert digest_files(tmp_path, [tmp_path / "sub" / "b", tmp_path / "a"]) == expected
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1}) != digest_json({"a": 1, "b": 2})
