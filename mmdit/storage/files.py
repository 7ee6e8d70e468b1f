"""Files and folders that appear whole or not at all, and that others may read.

Both are written under a hidden temporary name beside their own and renamed. The temporary name is locked while it is written,
so that several processes may write the same file at once (the last one wins, whole), and what a killed process leaves is
used up by the next one that writes there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mmdit.errors import UserError

try:
    import fcntl
except ImportError:  # Windows lacks these locks: temporary names differ by chance
    fcntl = None  # type: ignore[assignment]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK = (*_FULL, errno.EIO, errno.EROFS)
# A temporary name that is there and can't be opened is somebody else's: the next one is tried.
_IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST)
_MAX_ATTEMPTS = 100
_MAX_STEM = 200  # bytes of a temporary name, whose file's own name may have all 255


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that gets the name ``path`` when the block ends without an error.

    Whatever ends it before, a crash and a full disk included, leaves the older file as it was.

    Args:
        path: replaced if there; its folder is made.
        durable: return when the disk has the file, so that a power cut does not lose it.

    Raises:
        UserError: the disk does not take it, with the path and what to do.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, _open_file, _remove_file) as (descriptor, temporary):
            os.ftruncate(descriptor, 0)
            with open(descriptor, "wb", closefd=False) as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(descriptor)
            os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, as ``atomic_file`` does."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that gets the name ``path`` when the block ends without an error.

    A folder of that name is replaced; until then, and after an error, the old one is whole.

    Raises:
        UserError: the disk does not take it, with the path and what to do.
    """
    with contextlib.suppress(FileNotFoundError):  # one look: another writer may be replacing the folder
        if not stat.S_ISDIR(path.stat().st_mode):
            raise UserError(f"{path}: is a file; a folder of that name is to be written: choose another --output")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, _open_folder, _remove_folder) as (_, temporary):
            for left in temporary.iterdir():
                _remove_folder(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            settle(path)
            yield temporary
            _take_the_place(temporary, path)


def settle(path: Path) -> None:
    """Finish what a killed process began: where no new folder had taken its place, the old one gets its name back."""
    old = _old(path)
    if old.exists() and not path.exists():
        with contextlib.suppress(OSError):  # another process has just put a folder there
            old.rename(path)
    if old.exists():
        _remove_folder(old)


def _take_the_place(temporary: Path, path: Path) -> None:
    try:
        for attempt in itertools.count(1):
            settle(path)
            try:
                if path.exists():
                    path.rename(_old(path))
                temporary.rename(path)
                return
            except OSError as error:  # another process may have been faster: its folder is the old one now
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or attempt == _MAX_ATTEMPTS:
                    raise
    finally:
        settle(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{_stem(path)}.old")


def _stem(path: Path) -> str:
    name = os.fsencode(path.name)
    return path.name if len(name) <= _MAX_STEM else hashlib.sha256(name).hexdigest()


@contextmanager
def _temporary(
    path: Path, open_it: Callable[[Path], int | None], remove: Callable[[Path], object]
) -> Iterator[tuple[int, Path]]:
    """A temporary name beside ``path`` that nobody else uses meanwhile, opened; removed if the block fails."""
    for number in itertools.count():
        temporary = path.with_name(f".{_stem(path)}.{number}.tmp" if number else f".{_stem(path)}.tmp")
        if fcntl is None:
            temporary = path.with_name(f".{_stem(path)}.{secrets.token_hex(6)}.tmp")
        try:
            descriptor = open_it(temporary)
        except OSError as error:
            if error.errno in _IN_THE_WAY and os.path.lexists(temporary):
                continue
            raise
        if descriptor is None or (_lock(descriptor) and _is_still(descriptor, temporary)):
            break
        os.close(descriptor)
    try:
        yield descriptor if descriptor is not None else -1, temporary
    except BaseException:
        remove(temporary)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: then two processes should not write one file at once
        pass
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the open file has still this name: another process may have renamed it before the lock was ours."""
    ours = os.fstat(descriptor)
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _open_file(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)  # less what the umask takes away: the file is as shared as any other


def _open_folder(path: Path) -> int | None:
    while True:
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        if fcntl is None:
            return None
        with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    """The new name, too, is on the disk; where a folder can't be synchronised, the system does it when it likes."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors about writing ``path``, or below it, into a UserError that names it and says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = system_error(error)
        if cause is None or (cause is not error and cause.errno not in _DISK):
            raise
        if cause.errno in _FULL:
            raise UserError(f"{path}: {cause.strerror}: {remedy(cause)} or choose another --output") from error
        where = cause.filename or path
        raise UserError(
            f"{path}: cannot be written ({where}: {cause.strerror or cause}): choose another --output"
        ) from error


def system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind one of a library, whose writer may fail in its own words when a write did."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def remedy(error: OSError) -> str:
    """What to do about a write that failed."""
    return "free some space" if error.errno in _FULL else "make the folder writable"


def share_weights(folder: Path) -> None:
    """Give each safetensors file below ``folder`` the mode of a JSON file beside it or above.

    safetensors makes its files readable by their owner alone, which a group that shares a disk would find out late.
    """
    for weights in folder.rglob("*.safetensors"):
        beside = next((path for place in (weights.parent, folder) for path in place.glob("*.json")), None)
        if beside is not None:
            weights.chmod(beside.stat().st_mode & 0o777)
