"""Folders of a user's own aligned files -> a split of a dataset: resumable at any file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmdit.data.lines import MANIFEST
from mmdit.data.writer import DatasetWriter, read_description, write_description
from mmdit.errors import UserError, one_line
from mmdit.modalities import IMAGE, Reading
from mmdit.modalities.codec import Codec
from mmdit.modalities.files import is_whole
from mmdit.modalities.orientation import turn_together
from mmdit.progress import Progress
from mmdit.sources.folders.description import GENERATOR, describe
from mmdit.sources.folders.kinds import FolderOptions, imported_files
from mmdit.sources.folders.matching import BadFile, MatchedSample, match_folders
from mmdit.sources.folders.storing import AsItIs
from mmdit.sources.records import SourceRecords
from mmdit.storage.file_state import FileState, read_state
from mmdit.storage.listing import IMAGE_SUFFIXES
from mmdit.storage.lock import FolderLock
from mmdit.storage.names import nested_name

BATCH = 256  # samples between two looks at Ctrl-C


@dataclass(frozen=True)
class FoldersReport:
    """What ``import_folders`` did: the split, samples in its manifest, and the files whose samples are not."""

    path: Path
    num_samples: int
    bad: tuple[BadFile, ...]


@dataclass(frozen=True)
class _Outcome:
    """Of one sample: modality -> suffix of its file; the states of the files that were read for it now; what is wrong."""

    sample: MatchedSample
    suffixes: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, FileState] = field(default_factory=dict)
    bad: tuple[BadFile, ...] = ()


def import_folders(
    folders: Mapping[str, str | Path],
    output: str | Path,
    *,
    split: str = "train",
    depth_values: str = "auto",
    depth_scale: float = 0.001,
    classes: Sequence[Mapping[str, Any]] | None = None,
    licence: str | None = None,
    say: Callable[[str], None] = print,
) -> FoldersReport:
    """Import aligned files as one split of a dataset; call it again to go on where it stopped.

    Files are copied as they are, byte by byte, but for relative depth, which becomes a 16-bit PNG, and depth of floats, which
    becomes ``.npy``. Files that were changed since are imported again.

    Args:
        folders: modality -> folder, RGB among them (``mmdit.sources.folders.matching``).
        output: dataset folder; splits may be added to it one after another.
        split: to write.
        depth_values, depth_scale: what depth files hold (``mmdit.sources.folders.depth_kind``).
        classes: of the segmentation, as in dataset.json; None = labels 0 to 63 without names.
        licence: of the images, for dataset.json; None = it says nothing.
        say: where notes go.

    Raises:
        UserError: folders that can't be matched; depth that could be anything; an output made otherwise, among the folders or
            around them, or that another process writes into.
    """
    output = Path(output)
    sources = {name: Path(folder) for name, folder in folders.items()}
    writer = DatasetWriter(output, split)
    _refuse_nested(output, sources)
    matches = match_folders(sources)
    paths = {name: [sample.files[name] for sample in matches.samples if name in sample.files] for name in sources}
    kinds = imported_files(paths, FolderOptions(depth_values, depth_scale, classes))
    stores = {name: kind.store() for name, kind in kinds.items()}
    with FolderLock(output, GENERATOR):
        values = describe(output, split, sources, kinds=kinds, licence=licence)
        for note in (*matches.notes, *(kind.note for kind in kinds.values() if kind.note)):
            say(note)
        if read_description(output) != values:
            write_description(output, values)  # before the first file, so that nothing else can be mixed in
        records = {name: SourceRecords(writer.folder, name=f"sources-{name}") for name in sources}
        rows, bad = [], list(matches.bad)
        for outcome in _import_all(matches.samples, stores, writer, records):
            bad += outcome.bad
            for name, state in outcome.states.items():
                records[name].add(outcome.sample.id, state, outcome.suffixes[name])
            if not outcome.bad:
                rows.append((outcome.sample.id, None, _names(writer, outcome)))
        count = writer.write_rows(rows)
        if count == 0:
            (writer.folder / MANIFEST).unlink(missing_ok=True)
        for record in records.values():
            record.join(sample.id for sample in matches.samples)
    return FoldersReport(writer.folder, count, tuple(bad))


def _refuse_nested(output: Path, sources: Mapping[str, Path]) -> None:
    here = output.resolve()
    for name, folder in sources.items():
        there = folder.resolve()
        if here == there or here.is_relative_to(there) or there.is_relative_to(here):
            raise UserError(
                f"--{name} {folder} and --output {output} lie one in the other: files of one would be taken for the other's; "
                "give a folder beside it"
            )


def _import_all(
    samples: Sequence[MatchedSample],
    stores: Mapping[str, AsItIs],
    writer: DatasetWriter,
    records: Mapping[str, SourceRecords],
) -> Iterator[_Outcome]:
    """Threads: reading and writing files wait for the disk and for Pillow, which lets others run."""
    work = partial(_import_sample, stores, writer, records)
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        Progress(len(samples), "import", "sample", enabled=bool(samples)) as progress,
    ):
        for start in range(0, len(samples), BATCH):
            for outcome in pool.map(work, samples[start : start + BATCH]):
                progress.update()
                yield outcome


def _import_sample(
    stores: Mapping[str, AsItIs],
    writer: DatasetWriter,
    records: Mapping[str, SourceRecords],
    sample: MatchedSample,
) -> _Outcome:
    there = {name: _current(stores[name], writer, records[name], sample, name) for name in sample.files}
    if all(there.values()):
        return _Outcome(sample, {name: suffix for name, suffix in there.items() if suffix})
    states = {name: read_state(path) for name, path in sample.files.items()}  # before the files are read
    readings: dict[str, Reading] = {}
    bad: list[BadFile] = []
    for name, path in sample.files.items():
        try:
            readings[name] = stores[name].read(path)
        except Exception as error:  # whatever a file holds, the others are imported
            bad.append(BadFile(path, _reason(error, path)))
    bad += _misaligned(readings, stores, sample)
    suffixes: dict[str, str] = {}
    try:
        for name, reading in readings.items() if not bad else ():
            suffix, content = stores[name].content(sample.files[name], reading)
            writer.store(name, _file_name(sample), suffix, content)
            suffixes[name] = suffix
    except FileNotFoundError as error:
        bad.append(BadFile(str(error.filename), "it was removed"))
    if bad:
        return _Outcome(sample, bad=tuple(bad))
    return _Outcome(sample, suffixes, {name: state for name, state in states.items() if state is not None})


def _current(
    store: AsItIs, writer: DatasetWriter, records: SourceRecords, sample: MatchedSample, name: str
) -> str | None:
    """Suffix of the file that was made from the sample's as it is now; None = there is none."""
    for suffix in store.suffixes(sample.files[name]):
        made = writer.path(name, _file_name(sample), suffix)
        if is_whole(made, Path(sample.files[name])) and records.is_current(sample.id, sample.files[name], made, suffix):
            return suffix
    return None


def _misaligned(readings: Mapping[str, Reading], stores: Mapping[str, AsItIs], sample: MatchedSample) -> list[BadFile]:
    if IMAGE not in readings or len(readings) < 2:
        return []
    codecs: dict[str, Codec] = {name: stores[name].codec for name in readings}
    try:
        turned = turn_together(readings, codecs)
    except UserError as error:
        return [BadFile(sample.files[IMAGE], str(error))]
    height, width = turned[IMAGE].values.shape[:2]
    sizes = {name: reading.values.shape[:2] for name, reading in turned.items()}
    return [
        BadFile(sample.files[name], f"{h} x {w} pixels (height x width), {sample.files[IMAGE]} has {height} x {width}")
        for name, (h, w) in sizes.items()
        if (h, w) != (height, width)
    ]


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, UserError):
        return str(error).removeprefix(f"{path}: ")
    return f"can't be read: {type(error).__name__}: {one_line(error, 200)}"


def _file_name(sample: MatchedSample) -> str:
    return nested_name(sample.id, IMAGE_SUFFIXES)


def _names(writer: DatasetWriter, outcome: _Outcome) -> dict[str, str]:
    return {name: writer.name(name, _file_name(outcome.sample), suffix) for name, suffix in outcome.suffixes.items()}
