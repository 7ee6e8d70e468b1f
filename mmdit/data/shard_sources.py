"""What a shard was made from: the content of every file of its samples, and the samples that were left out.

The shard's own key holds a hash of it all. Beside the shard, ``sources-00000.json`` remembers size and time of each file, so
that a later run reads again only those that changed; without it, all are read once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdit.data.manifest import Sample
from mmdit.errors import UserError
from mmdit.storage.file_state import FileState, read_state
from mmdit.storage.files import write_atomically
from mmdit.storage.json_text import read_json

MAX_RECORD = 2**28
SampleState = dict[str, FileState | None]  # modality -> None if the file is missing


def sample_state(sample: Sample, modalities: Mapping[str, Any], known: SampleState | None = None) -> SampleState:
    """Return the states of a sample's files, without the modalities that it lacks."""
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
        """Read what an earlier run left; an empty record if it is missing or damaged, since it only saves work."""
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


def _state(size: int, time: int, digest: str) -> FileState:
    return FileState(int(size), int(time), str(digest))
