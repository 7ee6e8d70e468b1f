"""The files of one sample, read and judged together: what the loader trains on, `data check` accepts, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError
from mmdit.modalities.codec import NOTHING, Codec
from mmdit.modalities.orientation import turn_together
from mmdit.modalities.reading import Reading


def judge_sample(
    files: Mapping[str, Path], codecs: Mapping[str, Codec], facts: Mapping[str, Any] = NOTHING
) -> tuple[dict[str, Reading], list[tuple[str, str]]]:
    """Read the files of a sample and list all that is wrong with them.

    Args:
        files: modality -> path.
        codecs: of these modalities.
        facts: of the dataset, see ``Codec.read``.

    Returns:
        What could be read, and (modality, reason) for each problem; "" is the modality of one that is about all files.
    """
    readings: dict[str, Reading] = {}
    problems: list[tuple[str, str]] = []
    for name, path in files.items():
        try:
            readings[name] = codecs[name].read(path, facts)
            problems += [(name, reason) for reason in codecs[name].check(readings[name])]
        except UserError as error:
            problems.append((name, str(error).removeprefix(f"{path}: ")))
        except Exception as error:  # whatever a file holds, the others are looked at
            problems.append((name, f"can't be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"))
    try:
        readings = turn_together(readings, codecs)
    except UserError as error:
        problems.append(("", str(error)))
        return readings, problems
    sizes = {name: reading.values.shape[:2] for name, reading in readings.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size[0]} x {size[1]}" for name, size in sizes.items() if len(size) == 2)
        problems.append(("", f"the files differ in size (height x width): {listed}"))
    return readings, problems


def read_sample(
    files: Mapping[str, Path], codecs: Mapping[str, Codec], facts: Mapping[str, Any] = NOTHING
) -> dict[str, np.ndarray]:
    """Read the raw arrays of a sample, aligned. Raises UserError for the first problem that ``judge_sample`` finds."""
    readings, problems = judge_sample(files, codecs, facts)
    for name, reason in problems:
        raise UserError(f"{name}: {files[name]}: {reason}" if name else reason)
    return {name: reading.values for name, reading in readings.items()}
