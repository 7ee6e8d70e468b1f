"""The meshes of a folder that can be used, by category, and what is wrong with the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmdit.progress import Progress
from mmdit.sources.processes import map_in_processes
from mmdit.sources.scenes.assets.asset import Asset, describe
from mmdit.sources.scenes.assets.declared import BadMesh
from mmdit.sources.scenes.assets.files import AssetFile, find_licence, list_assets
from mmdit.sources.scenes.assets.reading import Units
from mmdit.storage.digests import digest_json

MANY = 32  # files whose reading takes time that is worth a word
FILES_PER_WORKER = 8  # for fewer a process is not worth its start


@dataclass(frozen=True)
class Catalogue:
    """assets: in the order of their paths; records: what the provenance says of each; bad, notes: a line for each file."""

    assets: tuple[Asset, ...]
    records: tuple[dict[str, Any], ...]
    bad: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def categories(self) -> tuple[str, ...]:
        """Names, sorted."""
        return tuple(sorted({asset.category for asset in self.assets}))

    @property
    def digest(self) -> str:
        """Of names, categories and contents: equal catalogues make equal scenes."""
        return digest_json([[asset.path, asset.category, asset.digest] for asset in self.assets])

    @property
    def licence(self) -> str:
        """For ``dataset.json``."""
        known = sorted({record["licence"]["file"] for record in self.records if record["licence"]})
        if not known:
            return "that of the meshes, which have no LICENSE file"
        unknown = sum(record["licence"] is None for record in self.records)
        named = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
        return f"that of the meshes: {named}" + (f"; {unknown} meshes have no LICENSE file" if unknown else "")


def read_catalogue(folder: Path, units: Units, num_workers: int) -> Catalogue:
    """Read every mesh below a folder once. Raises UserError for a folder that holds none; bad ones are in the result."""
    listed = list_assets(folder)
    assets, records, bad, notes = [], [], [], []
    read = partial(_read, folder, units)
    with Progress(len(listed), "meshes", "file", enabled=len(listed) >= MANY) as progress:
        workers = min(num_workers, len(listed) // FILES_PER_WORKER)
        for file, (asset, record, lines) in zip(listed, map_in_processes(read, listed, workers), strict=True):
            progress.update()
            if asset is None:
                bad += [f"{folder / file.path}: {line}" for line in lines]
                continue
            notes += [f"{folder / file.path}: {line}" for line in lines]
            assets.append(asset)
            records.append(record)
    return Catalogue(tuple(assets), tuple(records), tuple(bad), tuple(notes))


def _read(folder: Path, units: Units, file: AssetFile) -> tuple[Asset | None, dict[str, Any], tuple[str, ...]]:
    """The asset and its record, and notes; or None and why it can't be used."""
    try:
        asset, raw = describe(folder, file.path, file.category, units)
    except BadMesh as error:
        return None, {}, (str(error),)
    record = {
        "file": file.path,
        "category": file.category,
        "files": raw.files,
        "extents": [round(side, 4) for side in asset.extents],
        "licence": find_licence(folder, file.path),
    }
    return asset, record, raw.notes
