"""Files and folders appear whole or not at all, and can be read by others."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdit.errors import UserError
from mmdit.storage.files import atomic_file, share_weights, system_error, write_atomically, writing_folder


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@contextmanager
def _file_size_limit(num_bytes: int) -> Iterator[None]:
    """The system refuses to write beyond it, as a full disk does."""
    found = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, found[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, found)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("durable", [False, True])
def test_content_replaces_the_older_one_and_nothing_else_is_left(tmp_path: Path, durable: bool):
    path = tmp_path / "new" / "a.json"
    write_atomically(path, b"old and long")
    with atomic_file(path, durable=durable) as file:
        file.write(b"new")
    assert _content(path.parent) == {"a.json": "new"}


def test_files_are_as_shared_as_the_umask_says(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
        with writing_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o750]


def test_a_failed_write_keeps_the_older_file(tmp_path: Path):
    write_atomically(tmp_path / "a", b"old")

    def fail() -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"half")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert _content(tmp_path) == {"a": "old"}


def test_a_full_disk_names_the_path_and_keeps_the_older_file(tmp_path: Path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    with _file_size_limit(1000), pytest.raises(UserError, match=r"a\.bin: File too large: free some space") as caught:
        write_atomically(path, bytes(5000))
    assert system_error(caught.value).errno == errno.EFBIG
    assert _content(tmp_path) == {"a.bin": "old"}


def test_a_library_that_hides_a_full_disk_is_understood(tmp_path: Path):
    path = tmp_path / "a.pt"
    with (
        _file_size_limit(100_000),
        pytest.raises(UserError, match=r"a\.pt: File too large"),
        atomic_file(path) as file,
    ):
        torch.save(torch.zeros(1_000_000), file)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_or_missing_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/below: cannot be written .*choose another"):
        write_atomically(tmp_path / "file" / "below", b"")
    with pytest.raises(UserError, match="is a file"), writing_folder(tmp_path / "file"):
        pass
    assert _content(tmp_path) == {"file": ""}


def test_something_else_under_the_temporary_name_is_left_alone(tmp_path: Path):
    (tmp_path / ".a.tmp").mkdir()
    (tmp_path / ".a.1.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".b.tmp").write_text("no folder")
    write_atomically(tmp_path / "a", b"new")
    with writing_folder(tmp_path / "b"):
        pass
    assert (tmp_path / "a").read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {".a.tmp", ".a.1.tmp", ".b.tmp", "a", "b"}


def test_names_as_long_as_a_file_system_takes(tmp_path: Path):
    write_atomically(tmp_path / ("n" * 255), b"x")
    with writing_folder(tmp_path / ("ü" * 127)) as folder:
        (folder / "f").write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {"n" * 255, "ü" * 127}


KILLED = """
import os, signal, sys
from pathlib import Path
from mmdit.storage.files import atomic_file, writing_folder
kind, path = sys.argv[1], Path(sys.argv[2])
if kind == "file":
    with atomic_file(path) as file:
        file.write(b"half"); file.flush(); os.kill(os.getpid(), signal.SIGKILL)
with writing_folder(path) as folder:
    (folder / "half").write_text("half"); os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_the_old_one_and_the_next_uses_up_what_it_left(tmp_path: Path, kind: str):
    path = tmp_path / "a"
    if kind == "file":
        path.write_text("old")
    else:
        path.mkdir()
        (path / "f").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert {p.name for p in tmp_path.iterdir()} == {"a", ".a.tmp"}
    if kind == "file":
        assert path.read_text() == "old"
        write_atomically(path, b"n")
        assert path.read_text() == "n"
    else:
        assert _content(path) == {"f": "old"}
        with writing_folder(path) as folder:
            (folder / "g").write_text("new")
        assert _content(path) == {"g": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_moved_aside_gets_its_name_back_where_the_next_write_fails(tmp_path: Path):
    (tmp_path / ".a.old").mkdir()  # killed between the two renames
    (tmp_path / ".a.old" / "f").write_text("old")

    def fail() -> None:
        with writing_folder(tmp_path / "a"):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert _content(tmp_path / "a") == {"f": "old"}


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path):
    with atomic_file(tmp_path / "a") as file:
        file.write(b"outer" * 10)
        write_atomically(tmp_path / "a", b"inner")  # under way at the same time
        file.write(b"outer" * 10)
    assert _content(tmp_path) == {"a": "outer" * 20}


def test_many_writers_of_one_file_and_one_folder(tmp_path: Path):
    """Whoever looks always finds one writer's content, whole."""
    errors: list[Exception] = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_atomically(tmp_path / "file", text.encode() * 1000)
                with writing_folder(tmp_path / "folder") as folder:
                    for name in "xyz":
                        (folder / name).write_text(text)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "file").exists():
            text = (tmp_path / "file").read_text()
            assert len(text) == 1000
            assert len(set(text)) == 1
    assert errors == []
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
    content = _content(tmp_path / "folder")
    assert content.keys() == {"x", "y", "z"}
    assert len(set(content.values())) == 1


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
