"""One writer in a folder: the second is refused, and a lock that a dead process left is taken over."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from mmdit.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: the file alone counts
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".mmdit.lock"
# What file systems that know no locks answer.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class FolderLock:
    """Holds a folder for one process while the context is open.

    The lock is the system's (``flock`` on ``.mmdit.lock``), which ends with the process that holds it, however that ends;
    the file says which process that is: its number, host, start and command. Where the file system has no such locks
    the file alone counts: one of a process on this host that has ended is taken over.

    The folder is made where it is missing, and removed again if nothing was written into it.

    Args:
        folder: to hold.
        task: what the process does there, such as "mmdit data encode".

    Raises:
        UserError: on entering, where another process holds the folder, or it can't be made.
    """

    def __init__(self, folder: str | Path, task: str) -> None:
        self.folder, self.task = Path(folder), task
        self.path = self.folder / LOCK_NAME
        self._descriptor: int | None = None
        self._made: list[Path] = []

    def __enter__(self) -> FolderLock:
        missing = [self.folder, *self.folder.parents]
        self._made = [folder for folder in missing if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._try():
                pass
        except FileExistsError:
            raise UserError(f"{self.folder}: is a file; give a folder") from None
        except UserError:
            raise
        except OSError as error:
            self._remove_made()
            raise UserError(
                f"{self.folder}: can't be written: {error.strerror or error}: choose another folder"
            ) from None
        _HELD.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _HELD.discard(self)
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None
        self._remove_made()

    def _try(self) -> bool:
        """Take the lock; False where its file was removed in between, so that it must be tried again."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            holder = _read(descriptor)
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, "no locks")
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise self._refusal(holder) from None
                if error.errno not in _NO_LOCKS:
                    raise
                if _may_live(holder):
                    raise self._refusal(holder) from None
            if not _same_file(descriptor, self.path):
                return False
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(self._own()).encode(), 0)
            self._descriptor, descriptor = descriptor, -1
            return True
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _own(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": _start_of(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }

    def _refusal(self, holder: dict[str, Any]) -> UserError:
        who = "another process"
        if holder:
            who = "'{task}' (process {pid} on {host}, since {since})".format(
                **{key: holder.get(key, "?") for key in ("task", "pid", "host", "since")}
            )
        return UserError(
            f"{self.folder}: {who} is writing here: wait for its end, or choose another folder (if it has ended, delete "
            f"{self.path})"
        )

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):  # what holds anything stays
                folder.rmdir()

    def _forget(self) -> None:
        """In a forked child: the lock is the parent's, and must not outlive it in a child's hands."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor, self._made = None, []


_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_HELD):
        lock._forget()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _read(descriptor: int) -> dict[str, Any]:
    try:
        values = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _start_of(pid: int) -> str | None:
    """When a process of this host started, in the kernel's ticks; None where it isn't there or the system doesn't say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _may_live(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    started = _start_of(pid)
    return started is None or started == holder.get("started")
