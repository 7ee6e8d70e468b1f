"""Dataset folder -> latent shards: resumable per shard, striped over processes, its need of disk told at the start.

Only plain callables come in for distribution (``Processes``): who launches the processes is the caller's business.
Every shard depends on its samples alone, so any number of processes writes the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, default_collate
from tqdm import tqdm

from mmdit.data.folder import AlignedFolder, stack_modalities
from mmdit.data.latents import LatentsInfo, read_latents_info, whitening_statistics
from mmdit.data.manifest import list_splits
from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import FeatureTeacher
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.encoders.shard_jobs import ShardJob, check_disk, content_digest, is_complete, shard_jobs, write_json
from mmdit.errors import UserError
from mmdit.modalities.modality import Modality
from mmdit.storage.digests import digest_tensors
from mmdit.storage.files import share_weights, write_atomically


@dataclass(frozen=True)
class Processes:
    """This process among those that encode together; ``barrier`` returns when all have reached it."""

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], object] = lambda: None


def fingerprint(network: nn.Module) -> str:
    """Hash a network's weights, as float32, so that latents and decoder can't be mixed up unnoticed."""
    return digest_tensors(network.state_dict(), dtype=torch.float32)


def encode_dataset(
    data: str | Path,
    output: str | Path,
    vae: AutoencoderKL,
    modalities: Mapping[str, Modality],
    splits: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    shard_size: int = 1024,
    num_workers: int = 0,
    mirrored: bool = True,
    teacher: FeatureTeacher | SceneTeacher | None = None,
    processes: Processes | None = None,
    say: Callable[[str], None] = print,
) -> LatentsInfo:
    """Encode splits of a dataset folder; call it again to go on where it stopped.

    Args:
        data, output: dataset folder, and folder to write (layout in ``mmdit.data.latents``).
        vae: moved to its device and dtype by the caller; runs under ``torch.no_grad``.
        modalities: records of the modalities to encode; their whitening statistics are computed here.
        splits: None = every folder with a manifest, "train" first. The statistics are those of the first split, and are
            kept when more splits are added to the same output later.
        size: image size, None = the files'.
        mirrored: store the mirror image of every sample as a second view.
        teacher: also store its patch features of RGB; may be added to an output that has none.
        processes: shards are striped over them; rank 0 writes the indices.
        say: where the estimate of disk and the progress messages go.

    Raises:
        UserError: a bad sample (named); an output that is the dataset itself, or holds latents of another VAE, other
            modalities or another size; less free disk than needed, before anything is written.
    """
    processes = processes or Processes()
    data, output = Path(data), Path(output)
    if data.resolve() == output.resolve():
        raise UserError(
            f"{output}: is the dataset itself; latents need a folder of their own, such as {output}_latents"
        )
    available = list_splits(data)
    splits = sorted(available, key=lambda s: (s != "train", s)) if splits is None else list(splits)
    if not splits:
        raise UserError(f"{data}: no folder in it has a manifest.jsonl; there is nothing to encode")
    folders = {split: AlignedFolder(data, split, modalities, size=size) for split in splits}
    codec = LatentCodec(vae, modalities)
    moments_shape, features_shape = _probe(folders[splits[0]], codec, teacher)
    first = folders[splits[0]].info
    info = LatentsInfo(
        modalities=modalities,
        categories=first.categories,
        num_views=2 if mirrored else 1,
        moments_shape=moments_shape,
        vae={"fingerprint": fingerprint(vae), "config": _plain_config(vae)},
        features=None if teacher is None else _describe(teacher, features_shape),
        source={"licence": first.licence, "provenance": first.provenance, "size": size},
    )
    info = _merge_with_existing(output, info)
    jobs = [job for split in splits for job in shard_jobs(output, split, folders[split], info, shard_size)]
    todo = [job for job in jobs if not is_complete(job, info)]
    check_disk(output, todo, say if processes.rank == 0 else lambda text: None)
    processes.barrier()
    loader_args = {"batch_size": batch_size, "num_workers": num_workers, "collate_fn": _collate}
    own = todo[processes.rank :: processes.world_size]
    with tqdm(total=sum(job.count for job in own), unit="sample", desc="encode") as progress:
        for job in own:
            _write_shard(job, folders[job.split], codec, teacher, info, loader_args, progress)
    processes.barrier()
    if processes.rank == 0:
        for split in splits:
            shards = [{"ids": job.ids} for job in jobs if job.split == split and job.kind == "shard"]
            write_json(output / split / "index.json", {"shards": shards})
        if any(m.latents_mean is None for m in info.modalities.values()):
            info = _with_statistics(
                output, splits[0], info, [j for j in jobs if j.split == splits[0] and j.kind == "shard"]
            )
        vae.save_pretrained(output / "vae")  # training and its exported pipeline decode with this very VAE
        share_weights(output / "vae")
        write_json(output / "latents.json", info.to_dict())
        say(f"{output}: {', '.join(f'{split} {len(folders[split])}' for split in splits)} samples encoded")
    processes.barrier()
    return read_latents_info(output)


@torch.no_grad()
def _write_shard(
    job: ShardJob,
    folder: AlignedFolder,
    codec: LatentCodec,
    teacher: FeatureTeacher | SceneTeacher | None,
    info: LatentsInfo,
    loader_args: Mapping[str, Any],
    progress: tqdm,
) -> None:
    loader = DataLoader(Subset(folder, range(job.start, job.start + job.count)), shuffle=False, **loader_args)
    parts: dict[str, list[Tensor]] = {key: [] for key in job.shapes}
    for batch in loader:
        views = [{name: batch[name] for name in info.modalities}]
        if info.num_views == 2:
            views.append({name: folder.codecs[name].flip(images) for name, images in views[0].items()})
        if job.kind == "features":
            assert teacher is not None
            found = [teacher.features(view["rgb"]).half().cpu() for view in views]
            parts["features"].append(torch.stack(found, dim=1) * batch["present"][:, _rgb_row(info), None, None, None])
        else:
            found = [codec.encode_all(stack_modalities(view, info.modalities)).half().cpu() for view in views]
            moments = torch.stack(found, dim=2) * batch["present"][:, :, None, None, None, None]  # (B, M, V, 2C, h, w)
            if not moments.isfinite().all():
                raise UserError(f"{job.path}: the VAE gave moments beyond half precision: it does not fit this data")
            for column, name in enumerate(info.modalities):
                parts[name].append(moments[:, column])
            parts["present"].append(batch["present"])
            parts["category"].append(torch.as_tensor(batch["category"]))
        progress.update(len(batch["id"]))
    tensors = {key: torch.cat(values).contiguous() for key, values in parts.items()}
    write_atomically(job.path, save(tensors, metadata={"content": content_digest(job, info)}))


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples. Raises UserError where they differ in size."""
    shapes = [next(v.shape for v in sample.values() if isinstance(v, Tensor) and v.ndim == 3) for sample in samples]
    for sample, shape in zip(samples, shapes, strict=True):
        if shape != shapes[0]:
            (_, h, w), (_, h0, w0) = shape, shapes[0]
            raise UserError(
                f"sample {sample['id']!r} has {w} x {h} pixels, {samples[0]['id']!r} has {w0} x {h0}: give --size"
            )
    return default_collate(samples)


def _rgb_row(info: LatentsInfo) -> int:
    return list(info.modalities).index("rgb")


@torch.no_grad()
def _probe(
    folder: AlignedFolder, codec: LatentCodec, teacher: FeatureTeacher | SceneTeacher | None
) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Encode one sample to learn the shapes."""
    if teacher is not None and "rgb" not in folder.modalities:
        raise UserError("a teacher's features are those of RGB: add 'rgb' to the modalities, or leave the teacher out")
    sample = folder[0]
    moments = codec.moments(sample[next(iter(folder.modalities))][None])
    features = () if teacher is None else tuple(teacher.features(sample["rgb"][None]).shape[1:])
    channels, height, width = moments.shape[1:]
    return (channels, height, width), features


def _codec(info: LatentsInfo, name: str) -> dict[str, Any]:
    return {"codec": info.modalities[name].codec, **info.modalities[name].settings}


def _merge_with_existing(output: Path, info: LatentsInfo) -> LatentsInfo:
    """Keep the whitening statistics (and the features) of an output that is being extended, if it fits."""
    if not (output / "latents.json").is_file():
        return info
    old = read_latents_info(output)
    new_names, old_names = list(info.modalities), list(old.modalities)
    for what, ours, theirs in (
        ("VAE", info.vae["fingerprint"], old.vae["fingerprint"]),
        ("modalities", new_names, old_names),
        *((f"codec settings of {n}", _codec(info, n), _codec(old, n)) for n in new_names if n in old_names),
        ("moments of shape", info.moments_shape, old.moments_shape),
        ("number of views", info.num_views, old.num_views),
        ("categories", info.categories, old.categories),
    ):
        if ours != theirs:
            raise UserError(
                f"{output} already holds latents with {what} {theirs}, not {ours}: "
                "choose another --output, or delete it"
            )
    if info.features is not None and old.features is not None and info.features != old.features:
        raise UserError(f"{output} already holds features of {old.features}, not {info.features}: delete them first")
    return LatentsInfo(**{**vars(info), "modalities": old.modalities, "features": info.features or old.features})


def _with_statistics(output: Path, split: str, info: LatentsInfo, jobs: Sequence[ShardJob]) -> LatentsInfo:
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
    return LatentsInfo(**{**vars(info), "modalities": modalities})


def _describe(teacher: FeatureTeacher | SceneTeacher, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"teacher": teacher.name, "fingerprint": fingerprint(teacher), "shape": list(shape)}


def _plain_config(vae: AutoencoderKL) -> dict[str, Any]:
    return {key: value for key, value in json.loads(vae.to_json_string()).items() if not key.startswith("_")}
