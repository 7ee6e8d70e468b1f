"""Files appear whole and can be read by others."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdit.storage.files import share_weights, write_atomically


def test_content_replaces_the_older_one_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "new" / "a.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_older_file(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    (tmp_path / ".a.json.tmp").mkdir()  # in the way of the temporary file
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_weights_take_the_mode_of_the_json_beside_them(tmp_path: Path):
    (tmp_path / "vae").mkdir()
    for config, weights in (("model_index.json", "a.safetensors"), ("vae/config.json", "vae/b.safetensors")):
        (tmp_path / config).write_text("{}")
        save_file({"w": torch.zeros(1)}, tmp_path / weights)
    (tmp_path / "model_index.json").chmod(0o644)
    (tmp_path / "vae" / "config.json").chmod(0o640)
    share_weights(tmp_path)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "vae" / "b.safetensors").stat().st_mode & 0o777 == 0o640
