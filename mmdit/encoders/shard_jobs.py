"""The files of an encoded dataset: what they hold, which are complete, which must be written, and the disk they need."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmdit.data.folder import AlignedFolder, stack_modalities
from mmdit.data.latents import LatentsInfo, features_name, shard_name, sources_name
from mmdit.data.manifest import Sample
from mmdit.data.shard_sources import SampleState, ShardRecord, sample_state
from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import FeatureTeacher
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.storage.digests import digest_json
from mmdit.storage.files import write_atomically

# Free space that is left alone: other programs write to the disk too.
DISK_MARGIN = 64 * 2**20
# Before each key, so that shards of versions that did not know what they were made from are told apart.
KEY = "2:"
DTYPES = {"present": torch.bool, "category": torch.int64}  # of the tensors of a file that are not half precision


@dataclass(frozen=True)
class Encoders:
    """The frozen networks that make what files hold: the VAE's codec, and a teacher, None = no features."""

    codec: LatentCodec
    teacher: FeatureTeacher | SceneTeacher | None = None


@dataclass(frozen=True)
class ShardJob(ABC):
    """One file, of samples ``start`` … ``start + count - 1``. Subclasses say what it holds of them.

    B samples of a batch, M modalities, V views, C latent channels.
    """

    split: str
    path: Path
    record_path: Path
    start: int
    ids: list[str]
    shapes: Mapping[str, tuple[int, ...]]

    lists_samples: ClassVar[bool]  # whether the file says which samples the split has
    said: ClassVar[str]  # how messages begin that say what a network gave

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        """Bytes of the file: two for each value, and 4096 for a header."""
        return sum(2 * torch.Size(shape).numel() for shape in self.shapes.values()) + 4096

    def samples(self, folder: AlignedFolder) -> list[Sample]:
        """Return the samples of the file."""
        return folder.samples[self.start : self.start + self.count]

    @abstractmethod
    def made_by(self, info: LatentsInfo) -> Any:
        """The network that makes its content, as JSON."""

    @abstractmethod
    def reads(self, info: LatentsInfo) -> list[str]:
        """Modalities whose files decide its content."""

    @abstractmethod
    def labels(self, sample: Sample) -> Any:
        """What else of a sample decides it, as JSON."""

    @abstractmethod
    def facts(self, folder: AlignedFolder) -> dict[str, Any] | None:
        """What ``dataset.json`` says of the values that are read."""

    @abstractmethod
    def encode(self, views: Sequence[Mapping[str, Tensor]], present: Tensor, encoders: Encoders) -> Tensor:
        """Half precision (B, ...) of V views, each modality -> (B, 3, H, W); zeros where ``present``, (B, M), is False."""

    @abstractmethod
    def parts(self, values: Tensor, batch: Mapping[str, Any], kept: Tensor) -> dict[str, Tensor]:
        """The tensors of the file from what ``encode`` returned, of the rows that are ``kept``, (B,) bool."""

    @abstractmethod
    def begin_record(self) -> ShardRecord:
        """What is known of its samples before it is written."""

    @abstractmethod
    def end_record(self, record: ShardRecord, states: dict[str, SampleState], bad: dict[str, str], skip: bool) -> None:
        """Note what it was made from, and its bad samples: those are left out where ``skip``."""


class MomentsJob(ShardJob):
    """Moments, labels, and what is missing: the samples themselves."""

    lists_samples = True
    said = "the VAE gave moments"

    def made_by(self, info: LatentsInfo) -> Any:
        return info.vae["fingerprint"]

    def reads(self, info: LatentsInfo) -> list[str]:
        return list(info.modalities)

    def labels(self, sample: Sample) -> Any:
        return sample.category

    def facts(self, folder: AlignedFolder) -> dict[str, Any] | None:
        # A depth_scale that dataset.json leaves out is the default one.
        return {**folder.info.facts, "depth_scale": folder.info.depth_scale}

    def encode(self, views: Sequence[Mapping[str, Tensor]], present: Tensor, encoders: Encoders) -> Tensor:
        codec = encoders.codec
        found = [codec.encode_all(stack_modalities(view, codec.modalities)).half().cpu() for view in views]
        return torch.stack(found, dim=2) * present[:, :, None, None, None, None]  # (B, M, V, 2C, h, w)

    def parts(self, values: Tensor, batch: Mapping[str, Any], kept: Tensor) -> dict[str, Tensor]:
        names = [name for name in self.shapes if name not in DTYPES]
        found = {name: values[kept, column] for column, name in enumerate(names)}
        category = torch.as_tensor(batch["category"])[kept]
        return {**found, "present": batch["present"][kept], "category": category}

    def begin_record(self) -> ShardRecord:
        return ShardRecord(self.record_path)

    def end_record(self, record: ShardRecord, states: dict[str, SampleState], bad: dict[str, str], skip: bool) -> None:
        record.files, record.left_out, record.bad = states, bad if skip else {}, {} if skip else bad


class FeaturesJob(ShardJob):
    """A teacher's features of RGB, beside the moments of the same samples: without those that they leave out."""

    lists_samples = False
    said = "the teacher gave features"

    def made_by(self, info: LatentsInfo) -> Any:
        return info.features

    def reads(self, info: LatentsInfo) -> list[str]:
        return [IMAGE]

    def labels(self, sample: Sample) -> Any:
        return None

    def facts(self, folder: AlignedFolder) -> dict[str, Any] | None:
        return None

    def encode(self, views: Sequence[Mapping[str, Tensor]], present: Tensor, encoders: Encoders) -> Tensor:
        assert encoders.teacher is not None
        found = [encoders.teacher.features(view[IMAGE]).half().cpu() for view in views]
        row = list(encoders.codec.modalities).index(IMAGE)
        return torch.stack(found, dim=1) * present[:, row, None, None, None]  # (B, V, T, D)

    def parts(self, values: Tensor, batch: Mapping[str, Any], kept: Tensor) -> dict[str, Tensor]:
        return {"features": values[kept]}

    def begin_record(self) -> ShardRecord:
        return ShardRecord.read(self.record_path)

    def end_record(self, record: ShardRecord, states: dict[str, SampleState], bad: dict[str, str], skip: bool) -> None:
        record.bad = bad


def shard_jobs(
    output: Path, split: str, folder: AlignedFolder, info: LatentsInfo, shard_size: int
) -> Iterator[ShardJob]:
    """List the files of one split, in order."""
    for number, start in enumerate(range(0, len(folder), shard_size)):
        ids = [sample.id for sample in folder.samples[start : start + shard_size]]
        n, views = len(ids), info.num_views
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(info.modalities, (n, views, *info.moments_shape))
        shapes |= {"present": (n, len(info.modalities)), "category": (n,)}
        record = output / split / sources_name(number)
        yield MomentsJob(split, output / split / shard_name(number), record, start, ids, shapes)
        if info.features is not None:
            shapes = {"features": (n, views, *info.features["shape"])}
            yield FeaturesJob(split, output / split / features_name(number), record, start, ids, shapes)


def is_complete(job: ShardJob, info: LatentsInfo, folder: AlignedFolder, skip_bad: bool = False) -> bool:
    """Tell whether the file holds just these samples, as their files are now, encoded by this VAE.

    Anything else is written again: a shard whose samples were changed, one of an older version that doesn't say what it was
    made from, and, unless ``skip_bad``, one that bad samples were left out of.
    """
    try:
        with safe_open(job.path, framework="pt") as file:
            key = (file.metadata() or {}).get("content", "")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return False
    if not key.startswith(KEY):
        return False
    record = ShardRecord.read(job.record_path)
    if record.bad or (record.left_out and not skip_bad):
        return False
    count = sum(sample_id not in record.left_out for sample_id in job.ids)
    if any(shapes.get(name) != (count, *shape[1:]) for name, shape in job.shapes.items()):
        return False
    samples = job.samples(folder)
    states = {s.id: sample_state(s, info.modalities, record.files.get(s.id)) for s in samples}
    return key == content_key(job, info, folder, states, record.left_out)


def is_of_an_older_version(job: ShardJob) -> bool:
    """Tell whether the file is a shard that doesn't say what it was made from."""
    try:
        with safe_open(job.path, framework="pt") as file:
            return not (file.metadata() or {}).get("content", "").startswith(KEY)
    except (SafetensorError, OSError):
        return False


def content_key(
    job: ShardJob,
    info: LatentsInfo,
    folder: AlignedFolder,
    states: Mapping[str, SampleState],
    left_out: Mapping[str, str],
) -> str:
    """Hash of all that decides a file's content, kept in it: the network, the codecs, the size, and of each sample the id,
    the category, which modalities it has, and what their files hold.

    One entry, because safetensors writes several in any order and equal shards should be equal files.
    """
    codecs = {name: [modality.codec, dict(modality.settings)] for name, modality in info.modalities.items()}
    read, sources = job.reads(info), []
    for sample in job.samples(folder):
        # Of one that was left out all counts: it may be good now.
        is_out = sample.id in left_out
        names = list(info.modalities) if is_out else read
        files = {name: state and state[2] for name, state in states[sample.id].items() if name in names}
        sources.append([sample.id, is_out, job.labels(sample), files])
    decisive = [sources, job.made_by(info), codecs, job.facts(folder), info.source.get("size"), info.num_views]
    return KEY + digest_json(decisive)


def check_disk(output: Path, todo: Sequence[ShardJob], say: Callable[[str], None]) -> None:
    """Say what ``todo`` needs. Raises UserError if the disk lacks it, or if the output is a file."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; --output is a folder")
    needed = sum(job.num_bytes for job in todo)
    existing = output
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    samples = sum(job.count for job in todo if job.lists_samples)
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
