"""What each sample of a split was made from, so that one whose source was changed is made again.

``<split>/sources.jsonl`` has a line per sample: {"id", "size", "time", "digest"} of the file it comes from, and "note" where
it comes from something else too. While processes work each appends to its own part, ``sources-0.part.jsonl``; the parts are
joined at the end, or by the next run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmdit.storage.file_state import FileState, read_state
from mmdit.storage.files import atomic_file
from mmdit.storage.json_text import parse_json


class SourceRecords:
    """The records of one split, as they are on disk when this is built.

    Args:
        folder: of the split.
        rank: of this process, among those that write.
        name: of the file, without its suffix.
    """

    def __init__(self, folder: Path, rank: int = 0, name: str = "sources") -> None:
        self.folder, self.name = folder, name
        self.path = folder / f"{name}.jsonl"
        self.part = folder / f"{name}-{rank}.part.jsonl"
        self._known: dict[str, FileState] = {}
        self._notes: dict[str, str] = {}
        # Of what several runs wrote into parts the latest change counts.
        for path in [self.path, *sorted(self._parts(), key=lambda path: path.stat().st_mtime_ns)]:
            for sample_id, state, note in _read(path):
                self._set(sample_id, state, note)

    def _parts(self) -> list[Path]:
        return list(self.folder.glob(f"{self.name}-*.part.jsonl"))

    def _set(self, sample_id: str, state: FileState, note: str) -> None:
        self._known[sample_id] = state
        self._notes.pop(sample_id, None)
        if note:
            self._notes[sample_id] = note

    def is_current(self, sample_id: str, source: str | Path, made: Path, note: str = "") -> bool:
        """Tell whether ``made`` was made from ``source`` as it is now, and with the same ``note``.

        A sample that no record is of, as in datasets of older versions, is current if it is not older than its source.
        """
        known = self._known.get(sample_id)
        if self._notes.get(sample_id, "") != note:
            return False
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

    def add(self, sample_id: str, state: FileState, note: str = "") -> None:
        """Record a sample that has just been made. ``note``: a short text for what else decided it, such as a digest."""
        self._set(sample_id, state, note)
        self.folder.mkdir(parents=True, exist_ok=True)
        # One write, so that only the last line can be cut off; readers skip what is not a whole line.
        descriptor = os.open(self.part, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, self._line(sample_id))
        except OSError as error:
            error.filename = os.fspath(self.part)
            raise
        finally:
            os.close(descriptor)

    def join(self, ids: Iterable[str]) -> None:
        """Write the records of ``ids`` as one file; for the one process that is left when all have ended their work."""
        latest = SourceRecords(self.folder, name=self.name)
        for sample_id in self._known.keys() - latest._known.keys():
            latest._set(sample_id, self._known[sample_id], self._notes.get(sample_id, ""))
        kept = [sample_id for sample_id in ids if sample_id in latest._known]
        if not kept:
            return
        with atomic_file(self.path) as file:
            for sample_id in kept:
                file.write(latest._line(sample_id))
        for path in self._parts():
            path.unlink()

    def _line(self, sample_id: str) -> bytes:
        note = self._notes.get(sample_id)
        values = {"id": sample_id, **self._known[sample_id]._asdict()} | ({"note": note} if note else {})
        return json.dumps(values).encode() + b"\n"


def _read(path: Path) -> Iterator[tuple[str, FileState, str]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                values = parse_json(line)
                size, time, digest = values["size"], values["time"], values["digest"]
                state, note = FileState(int(size), int(time), str(digest)), str(values.get("note", ""))
                yield str(values["id"]), state, note
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
