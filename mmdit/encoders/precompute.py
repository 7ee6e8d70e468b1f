"""Dataset folder -> latent shards: resumable per shard, striped over processes, its need of disk told at the start.

Distribution comes in as plain callables (``Processes``); the caller launches the processes.
Every shard depends on its samples alone, so any number of processes writes the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import nn

from mmdit.data.description import identity
from mmdit.data.folder import AlignedFolder
from mmdit.data.latents import LatentsInfo, read_latents_info, whitening_statistics
from mmdit.data.manifest import list_splits
from mmdit.data.shard_sources import ShardRecord
from mmdit.data.shards import ShardFile
from mmdit.data.writer import refuse_foreign
from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import FeatureTeacher
from mmdit.encoders.guarded import GuardedFolder, check_image_size
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.encoders.shard_jobs import (
    Encoders,
    ShardJob,
    check_disk,
    is_complete,
    is_of_an_older_version,
    shard_jobs,
    write_json,
)
from mmdit.encoders.shard_writing import ShardWriter
from mmdit.errors import UserError, check_choice
from mmdit.modalities import IMAGE, Modality
from mmdit.names import LATENTS
from mmdit.progress import Progress
from mmdit.storage.component import load_component
from mmdit.storage.digests import digest_json, digest_tensors
from mmdit.storage.files import share_weights
from mmdit.storage.lock import FolderLock
from mmdit.storage.names import text_of
from mmdit.storage.requests import Request

THREADS = 16
TRAIN = "train"  # the split whose statistics are taken where none is named

DECODER_PARTS = ("decoder", "post_quant_conv")  # of a VAE: what makes images of latents


@dataclass(frozen=True)
class Processes:
    """This process among those that encode together; ``barrier`` returns when all have reached it."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], object] = lambda: None


def fingerprint(network: nn.Module) -> str:
    """Hash a network's weights, as float32, so that latents and decoder can't be mixed up unnoticed."""
    return digest_tensors(network.state_dict(), dtype=torch.float32)


def encoder_fingerprint(vae: nn.Module) -> str:
    """Hash what makes latents of images: VAEs that differ in their decoder alone have one."""
    weights = {name: value for name, value in vae.state_dict().items() if name.split(".")[0] not in DECODER_PARTS}
    return digest_tensors(weights, dtype=torch.float32)


def encode_dataset(
    data: str | Path,
    output: str | Path,
    vae: AutoencoderKL,
    modalities: Mapping[str, Modality],
    *,
    splits: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    shard_size: int = 1024,
    num_workers: int = 0,
    mirrored: bool = True,
    teacher: FeatureTeacher | SceneTeacher | None = None,
    skip_bad: bool = False,
    allow_outside: bool = False,
    processes: Processes | None = None,
    say: Callable[[str], None] = print,
) -> LatentsInfo:
    """Encode splits of a dataset folder; call it again to go on where it stopped.

    Shards are kept as long as the samples they were made from are the same: their ids, categories, missing modalities and
    the content of their files. All others are written again, as are those of versions that did not record it.

    Args:
        data, output: dataset folder, and folder to write (layout in ``mmdit.data.latents``).
        vae: moved to its device and dtype by the caller; runs under ``torch.no_grad``.
        modalities: records of the modalities to encode; their whitening statistics are computed here.
        splits: None = every folder with a manifest, "train" first. The statistics are those of the first split: kept when
            more splits are added to the same output later, and computed again when that split's samples have changed.
        size: image size, None = the files'.
        mirrored: store the mirror image of every sample as a second view.
        teacher: also store its patch features of RGB; may be added to an output that has none.
        skip_bad: leave bad samples out. Otherwise all are named, the shards of the others are written, and the split stays
            unfinished.
        allow_outside: accept manifests that name files outside the dataset.
        processes: shards are striped over them; rank 0 writes the indices.
        say: where the estimate of disk, the bad samples and the progress messages go.

    Raises:
        UserError: bad samples, after all were named; an output that is a dataset, or holds latents of another one, of another
            VAE, other modalities or another size, or that another process writes into; a teacher that is missing where
            features are there; a split that is named twice; less free disk than needed, before anything is written.
    """
    processes = processes or Processes()
    data, output = Path(data), Path(output)
    if data.resolve() == output.resolve():
        raise UserError(f"{output}: is the dataset itself; latents need another folder, such as {output}_latents")
    refuse_foreign(output, LATENTS)
    available = list_splits(data)
    if splits is None:
        splits = sorted(available, key=lambda s: (s != TRAIN, s))
    else:
        check_choice("--splits", splits)
    if not splits:
        raise UserError(f"{data}: no folder in it has a manifest.jsonl; there is nothing to encode")
    folders = {
        split: AlignedFolder(data, split, modalities, size=size, allow_outside=allow_outside) for split in splits
    }
    codec = LatentCodec(vae, modalities)
    like, moments_shape, features_shape = _probe(folders[splits[0]], codec, teacher)
    first = folders[splits[0]].info
    info = LatentsInfo(
        modalities=modalities,
        categories=first.categories,
        num_views=2 if mirrored else 1,
        moments_shape=moments_shape,
        vae={"fingerprint": fingerprint(vae), "config": _plain_config(vae)},
        features=None if teacher is None else _describe(teacher, features_shape),
        source={
            "licence": first.licence,
            "provenance": first.provenance,
            "name": text_of(data.resolve().name),
            "size": size,
        },
    )
    with FolderLock(output, "mmdit data encode") if processes.rank == 0 else nullcontext():
        info = _merge_with_existing(output, info, vae)
        jobs = [job for split in splits for job in shard_jobs(output, split, folders[split], info, shard_size)]
        todo = _incomplete(jobs, info, folders, skip_bad)
        if teacher is None and (lacking := sum(not job.lists_samples for job in todo)):
            name = (info.features or {}).get("teacher")
            raise UserError(
                f"{output}: holds features of {name}, and {lacking} files of them are to be written: give --teacher again, or "
                "choose another --output"
            )
        if processes.rank == 0:
            check_disk(output, todo, say)
            if older := sum(is_of_an_older_version(job) for job in todo):
                say(f"{output}: {older} files of an older version don't say what they were made from: written again")
            _unfinish(output, todo)
        processes.barrier()
        writer = ShardWriter(Encoders(codec, teacher), info, batch_size, num_workers, skip_bad)
        _write_own(
            todo, {split: GuardedFolder(folder, like) for split, folder in folders.items()}, writer, processes, say
        )
        processes.barrier()
        records = {job.record_path: ShardRecord.read(job.record_path) for job in jobs}
        if left := [reason for record in records.values() for reason in record.bad.values()]:
            raise UserError(_many_bad(left))
        if processes.rank == 0:
            _finish(output, jobs, records, info, vae, say)
        processes.barrier()
    return read_latents_info(output)


def _incomplete(
    jobs: Sequence[ShardJob], info: LatentsInfo, folders: Mapping[str, AlignedFolder], skip_bad: bool
) -> list[ShardJob]:
    with ThreadPoolExecutor(THREADS) as pool:  # it mostly waits for the file system
        done = list(pool.map(lambda job: is_complete(job, info, folders[job.split], skip_bad), jobs))
    return [job for job, is_done in zip(jobs, done, strict=True) if not is_done]


def _write_own(
    todo: Sequence[ShardJob],
    folders: Mapping[str, GuardedFolder],
    writer: ShardWriter,
    processes: Processes,
    say: Callable[[str], None],
) -> None:
    """Write this process's share of the files, and name each bad sample once."""
    # One process writes a shard and its features, because both leave out the same bad samples.
    together = list(dict.fromkeys(job.record_path for job in todo))[processes.rank :: processes.world_size]
    own = [job for job in todo if job.record_path in set(together)]
    named: set[tuple[str, str]] = set()
    with Progress(sum(job.count for job in own), "encode", "sample", enabled=bool(own)) as progress:
        for job in own:
            for sample_id, reason in writer.write(job, folders[job.split], progress).items():
                if (job.split, sample_id) not in named:  # not once more for its features
                    named.add((job.split, sample_id))
                    say(f"{job.split}: {reason}")


def _finish(
    output: Path,
    jobs: Sequence[ShardJob],
    records: Mapping[Path, ShardRecord],
    info: LatentsInfo,
    vae: AutoencoderKL,
    say: Callable[[str], None],
) -> None:
    """Write what makes the shards a set of latents: statistics, indices, the VAE, and at last ``latents.json``."""
    of_splits: dict[str, list[ShardJob]] = {}
    for job in jobs:
        of_splits.setdefault(job.split, []).append(job)
    whitened = _whitened(output, info, of_splits)
    if info.statistics != whitened.statistics and _are_whitened(info) and info.modalities != whitened.modalities:
        say(f"{output}: the samples have changed, and so has their whitening: models trained before have the old one")
    info, counts = whitened, {}
    for split, of_split in of_splits.items():
        shards = _index(of_split, records)
        write_json(output / split / "index.json", {"shards": shards})
        counts[split] = sum(len(shard["ids"]) for shard in shards)
    if fingerprint(vae) == info.vae["fingerprint"]:  # else the output has its own, with another decoder
        vae.save_pretrained(output / "vae")  # training and its exported pipeline decode with this very VAE
        share_weights(output / "vae")
    write_json(output / LATENTS, info.to_dict())
    say(f"{output}: {', '.join(f'{split} {count}' for split, count in counts.items())} samples encoded")
    if skipped := sum(len(record.left_out) for record in records.values()):
        say(f"{output}: {skipped} bad samples are left out")


def _index(jobs: Sequence[ShardJob], records: Mapping[Path, ShardRecord]) -> list[dict[str, Any]]:
    """What ``index.json`` says of each shard: its ids, and the key of each file's content."""
    shards: dict[Path, dict[str, Any]] = {}
    for job in jobs:
        ids = [sample_id for sample_id in job.ids if sample_id not in records[job.record_path].left_out]
        shard = shards.setdefault(job.record_path, {"ids": ids, "content": {}})
        shard["content"][job.path.name] = ShardFile(job.path).content
    return list(shards.values())


def _many_bad(bad: Sequence[str]) -> str:
    if len(bad) == 1:
        return f"{bad[0]} (--skip_bad leaves such samples out)"
    return f"{len(bad)} bad samples, listed above, first {bad[0]}: mend them, or leave them out with --skip_bad"


def _unfinish(output: Path, todo: Sequence[ShardJob]) -> None:
    """Remove the index of splits to be written again, so that nobody trains on a mix of old and new shards."""
    for split in {job.split for job in todo if job.lists_samples}:
        (output / split / "index.json").unlink(missing_ok=True)


@torch.no_grad()
def _probe(
    folder: AlignedFolder, codec: LatentCodec, teacher: FeatureTeacher | SceneTeacher | None
) -> tuple[dict[str, Any], tuple[int, int, int], tuple[int, ...]]:
    """Encode one good sample to learn the shapes; it is returned with that of its moments and of its features."""
    if teacher is not None and IMAGE not in folder.modalities:
        raise UserError("a teacher's features are those of RGB: add 'rgb' to the modalities, or leave the teacher out")
    sample = folder.first_good()
    check_image_size(folder, sample, codec.downsampling)
    moments = codec.moments(sample[next(iter(folder.modalities))][None])
    features = () if teacher is None else tuple(teacher.features(sample[IMAGE][None]).shape[1:])
    channels, height, width = moments.shape[1:]
    return sample, (channels, height, width), features


def _codec(info: LatentsInfo, name: str) -> dict[str, Any]:
    return {"codec": info.modalities[name].codec, **info.modalities[name].settings}


def _decisive(info: LatentsInfo) -> dict[str, Any]:
    """What all files of an output share."""
    return {
        "VAE": info.vae["fingerprint"],
        "modalities": list(info.modalities),
        **{f"codec settings of {name}": _codec(info, name) for name in info.modalities},
        "moments of shape": list(info.moments_shape),
        "number of views": info.num_views,
        "categories": list(info.categories),
    }


def _dataset(info: LatentsInfo) -> dict[str, Any]:
    """Which dataset an output is of; empty where an earlier version did not say."""
    if "provenance" not in info.source:
        return {}
    facts = identity(info.source["provenance"], info.source.get("name"))
    return {f"the dataset's {key}": value for key, value in facts.items()}


def _merge_with_existing(output: Path, info: LatentsInfo, vae: AutoencoderKL) -> LatentsInfo:
    """Keep the whitening statistics (and the features) of an output that is being extended, if it fits.

    A VAE that differs from the output's own in its decoder alone makes the same latents: the output keeps its own.
    """
    if not (output / LATENTS).is_file():
        return info
    old = read_latents_info(output)
    if info.vae["fingerprint"] != old.vae["fingerprint"] and _stored_encoder(output) == encoder_fingerprint(vae):
        info = replace(info, vae=old.vae)
    remedy = "choose another --output, or delete it"
    dataset = _dataset(info)  # a split that was added to it later is not in the record
    request = Request({**_decisive(info), **dataset}, optional=dataset)
    request.refuse_other({**_decisive(old), **_dataset(old)}, output, "latents", remedy)
    if info.features is not None and old.features is not None:
        Request(info.features).refuse_other(old.features, output, "features", "delete them first")
    features = info.features or old.features
    return replace(info, modalities=old.modalities, features=features, statistics=old.statistics)


def _stored_encoder(output: Path) -> str | None:
    """``encoder_fingerprint`` of the output's own VAE; None where it isn't there, or can't be read."""
    try:
        return encoder_fingerprint(load_component(output / "vae", AutoencoderKL, low_cpu_mem_usage=False))
    except UserError:
        return None


def _are_whitened(info: LatentsInfo) -> bool:
    return all(modality.latents_mean is not None for modality in info.modalities.values())


def _whitened(output: Path, info: LatentsInfo, of_splits: Mapping[str, Sequence[ShardJob]]) -> LatentsInfo:
    """Give latents the statistics of their first split, unless they have those of its samples as they are now.

    What is stored is not whitened, so that nothing else changes with them.
    """
    # Earlier versions did not say which split it was; where they took another one than this, their statistics are kept.
    earlier = TRAIN if _are_whitened(info) else next(iter(of_splits))
    split = earlier if info.statistics is None else str(info.statistics.get("split"))
    jobs = [job for job in of_splits.get(split, ()) if job.lists_samples]
    content = digest_json([ShardFile(job.path).content for job in jobs])
    if info.statistics is not None:
        is_same = content == info.statistics.get("content")
    else:  # a split that was written again, in this run or an interrupted one, has lost its index
        is_same = _are_whitened(info) and (output / split / "index.json").is_file()
    if not jobs or is_same:
        return info
    return _with_statistics(split, replace(info, statistics={"split": split, "content": content}), jobs)


def _with_statistics(split: str, info: LatentsInfo, jobs: Sequence[ShardJob]) -> LatentsInfo:
    """Whitening statistics of z = mean + std * noise: the posterior's variance is part of what the transformer sees."""
    channels = info.moments_shape[0] // 2
    modalities = dict(info.modalities)
    for column, (name, modality) in enumerate(info.modalities.items()):
        total, square, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
        for job in jobs:
            with safe_open(job.path, framework="pt") as file:
                moments = file.get_tensor(name)[file.get_tensor("present")[:, column]].double()  # (n, V, 2C, h, w)
            mean, logvar = moments.chunk(2, dim=2)
            total += mean.sum(dim=(0, 1, 3, 4))
            square += (mean.square() + logvar.exp()).sum(dim=(0, 1, 3, 4))
            count += mean[:, :, 0].numel()
        if count == 0:
            raise UserError(f"split {split!r} has no sample with {name}: its latents can't be whitened; leave it out")
        mean_values, std_values = whitening_statistics(total, square, count)
        modalities[name] = modality.replace(latents_mean=mean_values, latents_std=std_values)
    return replace(info, modalities=modalities)


def _describe(teacher: FeatureTeacher | SceneTeacher, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"teacher": teacher.name, "fingerprint": fingerprint(teacher), "shape": list(shape)}


def _plain_config(vae: AutoencoderKL) -> dict[str, Any]:
    return {key: value for key, value in json.loads(vae.to_json_string()).items() if not key.startswith("_")}
