"""The files an encoded dataset is made of: which there are to write, which are complete, and the disk they need."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mmdit.data.folder import AlignedFolder
from mmdit.data.latents import LatentsInfo, features_name, shard_name
from mmdit.errors import UserError
from mmdit.storage.files import write_atomically

# Free space that is left alone: other programs write to the disk too.
DISK_MARGIN = 64 * 2**20


@dataclass(frozen=True)
class ShardJob:
    """One file: moments (kind "shard") or a teacher's "features" of samples ``start`` … ``start + count - 1``."""

    kind: str
    split: str
    path: Path
    start: int
    ids: list[str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def count(self) -> int:
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        return sum(2 * torch.Size(shape).numel() for shape in self.shapes.values()) + 4096


def shard_jobs(
    output: Path, split: str, folder: AlignedFolder, info: LatentsInfo, shard_size: int
) -> Iterator[ShardJob]:
    """List the files of one split, in order."""
    for number, start in enumerate(range(0, len(folder), shard_size)):
        ids = [sample.id for sample in folder.samples[start : start + shard_size]]
        n, views = len(ids), info.num_views
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(info.modalities, (n, views, *info.moments_shape))
        shapes |= {"present": (n, len(info.modalities)), "category": (n,)}
        yield ShardJob("shard", split, output / split / shard_name(number), start, ids, shapes)
        if info.features is not None:
            shapes = {"features": (n, views, *info.features["shape"])}
            yield ShardJob("features", split, output / split / features_name(number), start, ids, shapes)


def is_complete(job: ShardJob, info: LatentsInfo) -> bool:
    """A file that holds just these samples, encoded by this VAE; anything else is written again."""
    try:
        with safe_open(job.path, framework="pt") as file:
            if (file.metadata() or {}).get("content") != content_digest(job, info):
                return False
            return all(
                key in file.keys() and tuple(file.get_slice(key).get_shape()) == shape  # noqa: SIM118
                for key, shape in job.shapes.items()
            )
    except (SafetensorError, OSError):
        return False


def content_digest(job: ShardJob, info: LatentsInfo) -> str:
    """Hash of all that decides a file's content: the ids, the network, the codecs, the size. Kept in the file.

    One entry, because safetensors writes several in any order and equal shards should be equal files.
    """
    codecs = {name: [modality.codec, dict(modality.settings)] for name, modality in info.modalities.items()}
    made_by = info.vae["fingerprint"] if job.kind == "shard" else info.features
    values = [job.ids, made_by, codecs, info.source.get("size"), info.num_views]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_disk(output: Path, todo: Sequence[ShardJob], say: Callable[[str], None]) -> None:
    """Say what ``todo`` needs. Raises UserError if the disk lacks it, or if the output is no folder."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; --output is a folder")
    needed = sum(job.num_bytes for job in todo)
    existing = output
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    samples = sum(job.count for job in todo if job.kind == "shard")
    say(
        f"{output}: {samples} samples to encode, {len(todo)} files, {needed / 2**20:.1f} MiB; "
        f"{free / 2**30:.1f} GiB are free"
    )
    if needed + DISK_MARGIN > free:
        raise UserError(
            f"{output}: needs {needed / 2**20:.1f} MiB and {DISK_MARGIN // 2**20} to spare, and {free / 2**20:.1f} are free: "
            "free some, choose another disk, or store no features or no mirrored views"
        )


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write to a temporary name and rename."""
    write_atomically(path, json.dumps(values, indent=1).encode())
