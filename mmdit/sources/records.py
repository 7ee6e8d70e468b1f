"""What each sample of a split was made from, so that one whose source was changed is made again.

``<split>/sources.jsonl`` has a line per sample: {"id", "size", "time", "digest"} of the file it comes from. While processes
work each appends to its own part, ``sources-0.part.jsonl``; the parts are joined at the end, or by the next run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmdit.storage.file_state import FileState, read_state
from mmdit.storage.files import atomic_file
from mmdit.storage.json_text import parse_json

NAME = "sources.jsonl"


class SourceRecords:
    """The records of one split, as they are on disk when this is built.

    Args:
        folder: of the split.
        rank: of this process, among those that write.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.part = folder / f"sources-{rank}.part.jsonl"
        self._known = dict(_read(folder / NAME))
        # Of what several runs wrote into parts the latest change counts.
        parts = sorted(folder.glob("sources-*.part.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        for path in parts:
            self._known.update(_read(path))

    def is_current(self, sample_id: str, source: str | Path, made: Path) -> bool:
        """Tell whether ``made`` was made from ``source`` as it is now.

        A sample that no record is of, as in datasets of older versions, is current if it is not older than its source.
        """
        known = self._known.get(sample_id)
        if known is None:
            try:
                if os.stat(made).st_mtime_ns < os.stat(source).st_mtime_ns:
                    return False
                status = os.stat(source)
            except OSError:
                return False
            self._known[sample_id] = FileState(status.st_size, status.st_mtime_ns, "")
            return True
        state = read_state(source, known)
        if state is None or (state.digest != known.digest):
            return False
        self._known[sample_id] = state
        return True

    def add(self, sample_id: str, state: FileState) -> None:
        """Record a sample that has just been made."""
        self._known[sample_id] = state
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"id": sample_id, **state._asdict()}) + "\n"
        # One write, so that only the last line can be cut off; readers skip what is not a whole line.
        descriptor = os.open(self.part, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        except OSError as error:
            error.filename = os.fspath(self.part)
            raise
        finally:
            os.close(descriptor)

    def join(self, ids: Iterable[str]) -> None:
        """Write the records of ``ids`` as one file; for the one process that is left when all have ended their work."""
        latest = SourceRecords(self.folder)
        latest._known = {**self._known, **latest._known}
        kept = [(sample_id, latest._known[sample_id]) for sample_id in ids if sample_id in latest._known]
        if not kept:
            return
        with atomic_file(self.folder / NAME) as file:
            for sample_id, state in kept:
                file.write((json.dumps({"id": sample_id, **state._asdict()}) + "\n").encode())
        for path in self.folder.glob("sources-*.part.jsonl"):
            path.unlink()


def _read(path: Path) -> Iterator[tuple[str, FileState]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                values = parse_json(line)
                size, time, digest = values["size"], values["time"], values["digest"]
                yield str(values["id"]), FileState(int(size), int(time), str(digest))
            except (ValueError, KeyError, TypeError):
                continue
