"""What a shard was made from: the content of every file of its samples, and the samples that were left out.

The shard's own key holds a hash of it all. Beside the shard, ``sources-00000.json`` remembers size and time of each file, so
that a later run reads again only those that changed; without it, all are read once more.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdit.data.manifest import Sample
from mmdit.errors import UserError
from mmdit.storage.files import write_atomically
from mmdit.storage.json_text import read_json

MAX_RECORD = 2**28
# modality -> [size in bytes, time of change in nanoseconds, hash of the content]; None = no such file
FileState = tuple[int, int, str]
SampleState = dict[str, FileState | None]


def read_state(path: Path, known: FileState | None = None) -> FileState | None:
    """Return a file's state, its content read only where size or time are not those of ``known``."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        if known is not None and (status.st_size, status.st_mtime_ns) == known[:2]:
            return known
        with path.open("rb") as file:
            digest = hashlib.blake2b(digest_size=16)
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, digest.hexdigest()


def sample_state(sample: Sample, modalities: Mapping[str, Any], known: SampleState | None = None) -> SampleState:
    """Return the states of a sample's files; a modality that it lacks is no key."""
    paths = {name: sample.files.get(name) for name in modalities}
    return {name: read_state(path, (known or {}).get(name)) for name, path in paths.items() if path is not None}


@dataclass
class ShardRecord:
    """What is remembered of one shard.

    Args:
        path: of the file.
        files: sample's id -> the states of its files.
        left_out: bad samples that the shard lacks -> the reason.
        bad: bad samples for which no shard was written -> the reason.
    """

    path: Path
    files: dict[str, SampleState] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ShardRecord:
        """Read what an earlier run left; nothing where it is missing or damaged, for it only saves work."""
        if not path.is_file():
            return cls(path)
        try:
            values = read_json(path, max_bytes=MAX_RECORD)
            files = {
                str(sample_id): {str(name): None if state is None else _state(*state) for name, state in states.items()}
                for sample_id, states in values["files"].items()
            }
            left_out, bad = ({str(i): str(why) for i, why in values[key].items()} for key in ("left_out", "bad"))
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            return cls(path)
        return cls(path, files, left_out, bad)

    def write(self) -> None:
        """Write it."""
        values = {"files": self.files, "left_out": self.left_out, "bad": self.bad}
        write_atomically(self.path, json.dumps(values, separators=(",", ":")).encode())

    def remove(self) -> None:
        """Forget it on disk too."""
        if self.path.exists():
            os.unlink(self.path)


def _state(size: int, time: int, digest: str) -> FileState:
    return int(size), int(time), str(digest)
