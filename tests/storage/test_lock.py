"""One writer a folder; what a dead one left is no obstacle."""

import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

import mmdit.storage.lock as lock_module
from mmdit.errors import UserError
from mmdit.storage.lock import LOCK_NAME, FolderLock

_HOLD = """
import sys, time
from mmdit.storage.lock import FolderLock
with FolderLock(sys.argv[1], "the first"):
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder "out"."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, env=environment
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_refused_and_harms_nothing(tmp_path, holder):
    before = (tmp_path / "out" / LOCK_NAME).read_bytes()
    message = (
        rf"out: 'the first' \(process {holder.pid} on {re.escape(socket.gethostname())}, since .*\) is writing here"
    )
    with pytest.raises(UserError, match=message), FolderLock(tmp_path / "out", "the second"):
        pass
    assert (tmp_path / "out" / LOCK_NAME).read_bytes() == before
    assert holder.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(tmp_path, holder, number):
    holder.send_signal(number)
    holder.wait()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    with FolderLock(tmp_path / "out", "the second"):
        assert json.loads((tmp_path / "out" / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "out").exists() or not (tmp_path / "out" / LOCK_NAME).exists()


def test_the_folder_is_free_again_and_an_empty_one_that_was_made_is_removed(tmp_path):
    for _ in range(2):
        with FolderLock(tmp_path / "a/b", "x"):
            pass
        assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with FolderLock(tmp_path / "mine", "x"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []
    with FolderLock(tmp_path / "full", "x"):
        (tmp_path / "full" / "file").write_text("")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    with FolderLock(tmp_path / "out", "x"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        child.start()
    try:
        with FolderLock(tmp_path / "out", "x"):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_without_locks_of_the_system_the_file_decides(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock_module.fcntl, "flock", unsupported)
    path = tmp_path / LOCK_NAME
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": lock_module._start_of(os.getpid())}
    for content in ({**me, "pid": ended.pid}, {**me, "started": "0"}, {}, {"pid": "x"}, [1]):
        path.write_text(json.dumps(content))
        with FolderLock(tmp_path, "x"):
            pass
        assert not path.exists()
    for content in (me, {**me, "host": "elsewhere"}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"if it has ended, delete .*mmdit\.lock"), FolderLock(tmp_path, "x"):
            pass
        assert json.loads(path.read_text()) == content


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/inside"):
        with pytest.raises(UserError, match="file"), FolderLock(path, "x"):
            pass
