"""Modalities that the user gives by file: ``--depth F`` and its like, and ``--given NAME=FILE`` for any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdit.cli.common.inputs import read_condition
from mmdit.errors import UserError, unknown_name
from mmdit.modalities import Reading
from mmdit.modalities.orientation import turn_together
from mmdit.modalities.stored import regular_size
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


def given_files(options: Mapping[str, Path | None], given: Sequence[str] | None) -> dict[str, Path]:
    """Collect the files of all given modalities, by name, in the order of the options and then as they stand.

    Args:
        options: the modality of each fixed option -> its value.
        given: ``NAME=FILE`` each.

    Raises:
        UserError: not NAME=FILE, a modality that is given twice, or a file that doesn't exist.
    """
    files: dict[str, Path] = {}
    typed: dict[str, str] = {}
    for name, path in options.items():
        if path is not None:
            files[name], typed[name] = path, f"--{name} {path}"
    for entry in given or ():
        name, mark, path_text = entry.partition("=")
        if not mark or not name or not path_text:
            raise UserError(f"--given {entry!r}: give NAME=FILE, such as --given edges=edges.png")
        if name in files:
            raise UserError(f"--given {entry}: {name} is given twice, also by {typed[name]}: leave one out")
        files[name], typed[name] = Path(path_text).expanduser(), f"--given {entry}"
    for name, path in files.items():
        if not path.is_file():
            prefix = typed[name].removesuffix(str(path))
            try:
                regular_size(path)
            except UserError as error:
                raise UserError(f"{prefix if prefix != typed[name] else typed[name] + ': '}{error}") from None
    return files


def read_given(
    files: Mapping[str, Path],
    pipe: MultimodalDiTPipeline,
    model: str,
    options: Mapping[str, Any],
    *,
    edited: str | None = None,
    notes: list[str],
) -> dict[str, Reading]:
    """Read given modalities for the pipeline.

    Args:
        files: modality -> path.
        pipe: the model that takes them; model: its name as the user typed it.
        options: how files are read, such as ``depth_values``; "auto" = as they look.
        edited: the modality that IMAGE is, to be edited, so that all may be given; None = it is no edit.
        notes: gets what was guessed about them.

    Raises:
        UserError: a modality that the model lacks, all of its modalities, a bad file, maps that differ in size, or an option
            that is about none of them.
    """
    for option, value in options.items():
        if value != "auto":
            _check_read(option, value, files, pipe)
    for name in files:
        if name not in pipe.modalities:
            raise UserError(f"--model {model!r}: {unknown_name('modality', name, pipe.modalities)}")
    if edited is None and files and len(files) == len(pipe.modalities):
        raise UserError(f"all modalities are given ({', '.join(files)}): leave out at least one to be generated")
    readings = {name: read_condition(path, pipe.codecs[name], options) for name, path in files.items()}
    readings = turn_together(readings, pipe.codecs)
    if len({reading.values.shape[:2] for reading in readings.values()}) > 1:
        sizes = ((name, *reading.values.shape[:2]) for name, reading in readings.items())
        listed = ", ".join(f"{'IMAGE' if name == edited else f'--{name}'} {h} x {w}" for name, h, w in sizes)
        raise UserError(f"the given maps differ in size (height x width): {listed}; give aligned maps of one size")
    notes += [reading.note for reading in readings.values() if reading.note]
    return {name: reading.replace(note=None) for name, reading in readings.items()}


def _check_read(option: str, value: Any, files: Mapping[str, Path], pipe: MultimodalDiTPipeline) -> None:
    """Raise UserError for an option of files of which none is given."""
    about = [name for name, codec in pipe.codecs.items() if option in codec.read_options]
    if not any(name in about for name in files):
        listed = (
            f"a file of {' or '.join(about)}, and none is given: give one" if about else "no modality of this model"
        )
        raise UserError(f"--{option} {value}: is about {listed}{', or' if about else ':'} leave it out")
