"""A few samples of a split as a dataset of their own."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from mmdit.data.lines import Rules
from mmdit.data.manifest import DatasetInfo, read_manifest
from mmdit.data.prompts import PROMPTS, read_prompts
from mmdit.data.writer import DatasetWriter
from mmdit.names import DATASET
from mmdit.storage.files import write_atomically


def write_excerpt(info: DatasetInfo, split: str, ids: Collection[str], output: Path, new_split: str = "train") -> None:
    """Copy samples with their files and captions into a new dataset folder; what the captions name is left out.

    Args:
        info: of the dataset.
        split: where the samples are.
        ids: of the samples.
        output: the new dataset's folder.
        new_split: name of its only split.

    Raises:
        UserError: a manifest or prompts.jsonl with something wrong in it.
    """
    rules = Rules(info.root, split, None, None, allow_outside=info.allow_outside)
    prompts = read_prompts(rules)
    writer = DatasetWriter(output, new_split)
    rows, lines = [], []
    for sample in read_manifest(info, split):
        if sample.id not in ids:
            continue
        names = {}
        for modality, path in sample.files.items():
            if path is not None:
                writer.store(modality, sample.id, path.suffix, path.read_bytes())
                names[modality] = writer.name(modality, sample.id, path.suffix)
        rows.append((sample.id, info.categories[sample.category] if sample.category >= 0 else None, names))
        if sample.id in prompts:
            lines.append(json.dumps({"id": sample.id, "captions": prompts[sample.id].captions}, ensure_ascii=False))
    write_atomically(output / DATASET, (info.root / DATASET).read_bytes())
    writer.write_rows(rows)
    if lines:
        write_atomically(writer.folder / PROMPTS, "".join(f"{line}\n" for line in lines).encode())
