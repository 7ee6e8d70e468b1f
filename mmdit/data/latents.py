"""Pre-encoded datasets: moments in half precision, as safetensors shards that each worker reads by itself.

Layout::

    ROOT/latents.json                         what was encoded, by which VAE, with which whitening (``LatentsInfo``)
    ROOT/vae/                                 the VAE, as diffusers saves it
    ROOT/<split>/index.json                   shards, ids, and the key of what each file was made from (files of earlier versions
                                              have none), written last: a split without it is unfinished
    ROOT/<split>/shard-00000.safetensors      <modality> (n, V, 2C, h, w) float16; present (n, M) bool; category (n,)
    ROOT/<split>/features-00000.safetensors   optional: features (n, V, T, D) float16 of a frozen teacher

V = 2 views: the image and its mirror image, or 1 without (``mmdit data encode --mirrored false``): the 1,281,167 images of
ImageNet at 256 pixels, four modalities with 2C h w = 8 x 32 x 32, are 84 GB per view. A missing modality is zeros with
``present`` False.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmdit.data.folder import AlignedFolder
from mmdit.data.manifest import NO_CATEGORY, Sample
from mmdit.data.paths import check_split_name
from mmdit.data.shard_sources import ShardRecord
from mmdit.data.shards import OpenFiles, ShardFile, half_batch
from mmdit.errors import UserError, unknown_name
from mmdit.modalities import IMAGE, Modality
from mmdit.names import LATENTS
from mmdit.storage.digests import digest_json
from mmdit.storage.file_state import read_state
from mmdit.storage.json_text import quoted, read_json
from mmdit.storage.listing import list_folders

FORMAT_VERSION = 1
MAX_INDEX = 2**30  # the ids of some tens of millions of samples
COMPARED = 8  # pictures of a shard by which its dataset is known


@dataclass(frozen=True)
class LatentsInfo:
    """What ``latents.json`` holds.

    Args:
        modalities: records with ``latents_mean``/``latents_std`` of the training split, in storage order.
        categories: names, in the order of the ids.
        num_views: 1, or 2 with mirrored images.
        moments_shape: (2C, h, w).
        vae: fingerprint and config of the VAE: ``{"fingerprint", "config"}``.
        features: None, or ``{"teacher", "shape": [T, D]}``.
        source: the dataset's licence, provenance and name.
        statistics: what the whitening is of, ``{"split", "content"}``, a digest of its shards' keys; None = an earlier version
            did not say.
    """

    modalities: Mapping[str, Modality]
    categories: tuple[str, ...]
    num_views: int
    moments_shape: tuple[int, int, int]
    vae: Mapping[str, Any]
    features: Mapping[str, Any] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {**asdict(self), "modalities": [modality.to_dict() for modality in self.modalities.values()]}
        return {"format": FORMAT_VERSION, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentsInfo:
        """Invert ``to_dict``."""
        modalities = {entry["name"]: Modality.from_dict(entry) for entry in values["modalities"]}
        if len(modalities) != len(values["modalities"]):
            names = [entry["name"] for entry in values["modalities"]]
            raise ValueError(f"'modalities' has one twice: {quoted(names)}")
        categories, features = values["categories"], values.get("features")
        if not isinstance(categories, list) or not all(isinstance(name, str) for name in categories):
            raise ValueError(f"'categories' is {quoted(categories)}")
        for key, count, sizes in (
            ("num_views", 1, [values["num_views"]]),
            ("moments_shape", 3, values["moments_shape"]),
            *((("features' shape", 2, features["shape"]),) if features is not None else ()),
        ):
            are_sizes = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)
            if not are_sizes or len(sizes) != count:
                raise ValueError(f"{key} is {quoted(sizes)}")
        given = values["vae"], values.get("source") or {}, values.get("statistics") or {}
        if not all(isinstance(each, dict) for each in given):
            raise ValueError("'vae', 'source' and 'statistics' must be objects")
        return cls(
            modalities=modalities,
            categories=tuple(categories),
            num_views=values["num_views"],
            moments_shape=tuple(values["moments_shape"]),
            vae=values["vae"],
            features=features,
            source=values.get("source") or {},
            statistics=values.get("statistics"),
        )


def read_latents_info(root: str | Path) -> LatentsInfo:
    """Read ``root/latents.json``. Raises UserError if it is missing, damaged, or of another format."""
    path = Path(root) / LATENTS
    advice = f"encode the dataset first: mmdit data encode --data DIR --output {root}"
    values = read_json(path, advice=advice)
    if not isinstance(values, dict) or values.get("format") != FORMAT_VERSION:
        found = values.get("format") if isinstance(values, dict) else values
        raise UserError(f"{path}: format {quoted(found)}, this version reads {FORMAT_VERSION}: encode again")
    try:
        return LatentsInfo.from_dict(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if type(error) is ValueError else repr(error)
        raise UserError(f"{path}: damaged: {reason}; encode the dataset again") from None


def shard_name(number: int) -> str:
    """File name of a shard of moments."""
    return f"shard-{number:05d}.safetensors"


def features_name(number: int) -> str:
    """File name of the teacher's features for the same samples."""
    return f"features-{number:05d}.safetensors"


def sources_name(number: int) -> str:
    """File name of what is remembered of the files that a shard was made from."""
    return f"sources-{number:05d}.json"


class LatentShards(Dataset):
    """Map-style dataset over one encoded split, with one item per (sample, view).

    Item ``view * n + i`` is view ``view`` of sample ``i``: mirroring is a matter of the sampler's index, so a resumed
    run sees the same data with no generator inside the dataset. An item is ``{"moments": (M, 2C, h, w) float16,
    "present": (M,) bool, "category": int (-1 = none), "id": str}``, and with ``features=True`` also ``"features"``
    (T, D) float16. A loader asks for whole batches (``read_batch``), read straight into the batch's memory in the stored
    precision: converting is the device's business.

    Args:
        root: folder with ``latents.json``.
        split: folder inside it.
        modalities: names to return, in this order; None = all, in storage order.
        features: also return the teacher's patch features.
        mirrored: also return the mirrored views; False = n items.

    Raises:
        UserError: an unknown split or modality; features that were not encoded; a shard that is lost, truncated or does
            not hold what the index says, at construction (headers are checked) or later. The message names the file.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        modalities: Sequence[str] | None = None,
        features: bool = False,
        mirrored: bool = True,
    ) -> None:
        check_split_name(split)
        self.root, self.split = Path(root), split
        self.info = read_latents_info(root)
        names = list(self.info.modalities) if modalities is None else list(modalities)
        for name in names:
            if name not in self.info.modalities:
                raise unknown_name(f"modality of {self.root}", name, self.info.modalities)
        self.modalities = {name: self.info.modalities[name] for name in names}
        if features and self.info.features is None:
            raise UserError(f"{self.root}: holds no features; encode with --teacher, or train with --alignment null")
        self.features = features
        self.num_views = self.info.num_views if mirrored else 1
        index = self._read_index()
        self.ids: list[str] = [sample_id for shard in index["shards"] for sample_id in shard["ids"]]
        self._starts = [0, *accumulate(len(shard["ids"]) for shard in index["shards"])]
        self._shards: list[ShardFile] = []
        self._features: list[ShardFile] = []
        self._files = OpenFiles()
        for number, shard in enumerate(index["shards"]):
            self._add_shard(number, len(shard["ids"]), shard.get("content") or {})
        self._check_statistics()
        columns = [list(self.info.modalities).index(name) for name in names]
        self._present, self._category = (
            torch.cat([shard.whole(key, OpenFiles()) for shard in self._shards]) for key in ("present", "category")
        )
        self._present = self._present[:, columns]
        wrong = (self._category < NO_CATEGORY) | (self._category >= max(1, len(self.info.categories)))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            path = self._shards[bisect_right(self._starts, row) - 1].path
            raise UserError(
                f"{path}: sample {self.ids[row]!r} has the category {int(self._category[row])}, and there are "
                f"{len(self.info.categories)} from 0 (-1 = none): delete the file and run 'mmdit data encode' again"
            )

    def _add_shard(self, number: int, count: int, content: Mapping[str, str]) -> None:
        folder, views = self.root / self.split, self.info.num_views
        shard = ShardFile(folder / shard_name(number))
        moments = ("F16", (count, views, *self.info.moments_shape))
        small = {"present": ("BOOL", (count, len(self.info.modalities))), "category": ("I64", (count,))}
        shard.check(dict.fromkeys(self.modalities, moments) | small)
        shard.check_content(content.get(shard_name(number)))
        self._shards.append(shard)
        if self.features and self.info.features is not None:
            shard = ShardFile(folder / features_name(number))
            shard.check({"features": ("F16", (count, views, *self.info.features["shape"]))})
            shard.check_content(content.get(features_name(number)))
            self._features.append(shard)

    def _check_statistics(self) -> None:
        known = self.info.statistics
        if known is None or known.get("split") != self.split:
            return
        if known.get("content") != digest_json([shard.content for shard in self._shards]):
            raise UserError(
                f"{self.root / LATENTS}: its whitening is not that of the shards of {self.split!r}: run 'mmdit data "
                "encode' again"
            )

    def _read_index(self) -> dict[str, Any]:
        path = self.root / self.split / "index.json"
        if not path.is_file():
            folders = list_folders(self.root) if self.root.is_dir() else []
            found = ", ".join(name for name in folders if (self.root / name / "index.json").is_file()) or "none"
            raise UserError(f"{path}: no such file; finished splits of {self.root}: {found}")
        index = read_json(path, advice="encode the split again", max_bytes=MAX_INDEX)
        shards = index.get("shards") if isinstance(index, dict) else None
        if not isinstance(shards, list) or not shards:
            raise UserError(f"{path}: damaged: 'shards' is {quoted(shards)}; encode the split again")
        for shard in shards:
            ids = shard.get("ids") if isinstance(shard, dict) else None
            if not isinstance(ids, list) or not all(isinstance(sample_id, str) for sample_id in ids):
                raise UserError(f"{path}: damaged: the 'ids' of a shard are {quoted(ids)}; encode the split again")
            if not isinstance(shard.get("content") or {}, dict):
                raise UserError(f"{path}: damaged: the 'content' of a shard is no object; encode the split again")
        return index

    def refuse_other_source(self, root: Path, samples: Iterable[Sample]) -> None:
        """Raise UserError where a dataset's pictures are not those that were encoded: ids alone are the same in many.

        Some of the first, the middle and the last shard are compared, as far as both are there.

        Args:
            root: the dataset, for the message.
            samples: of the same split of it.
        """
        pictures = {sample.id: path for sample in samples if (path := sample.files.get(IMAGE)) is not None}
        last = len(self._shards) - 1
        for number in sorted({0, last // 2, last}):
            files = ShardRecord.read(self.root / self.split / sources_name(number)).files
            for sample_id in list(files)[:: max(1, len(files) // COMPARED)]:
                known = files[sample_id].get(IMAGE)
                found = read_state(pictures[sample_id], known) if known and sample_id in pictures else None
                if known and found and found.digest != known.digest:
                    raise UserError(
                        f"{root}: its {IMAGE} of {sample_id!r} is not the one that {self.root} was encoded from: give the "
                        "dataset that was encoded, or encode this one"
                    )

    def relabel(self, table: Sequence[int]) -> None:
        """Give each category of the data another id, such as a trained model's: ``table[id]``, -1 = none."""
        self._category = torch.tensor([*table, NO_CATEGORY])[self._category]  # -1 is the last

    def __len__(self) -> int:
        return len(self.ids) * self.num_views

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.read_batch([index])
        item = {key: value[0] for key, value in batch.items()}
        return {**item, "category": int(item["category"])}

    def read_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Read a batch: the items' entries with a leading dimension B; ``id`` is a list."""
        moments, targets = half_batch((len(indices), len(self.modalities), *self.info.moments_shape), entry_dims=3)
        features_shape = self.info.features["shape"] if self.features and self.info.features is not None else (0, 0)
        features, features_targets = half_batch((len(indices), *features_shape), entry_dims=2)
        samples = []
        for position, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(index)
            view, sample = divmod(index, len(self.ids))
            number = bisect_right(self._starts, sample) - 1
            entry = (sample - self._starts[number]) * self.info.num_views + view
            self._shards[number].read(entry, dict(zip(self.modalities, targets[position], strict=True)), self._files)
            if self.features:
                self._features[number].read(entry, {"features": features_targets[position]}, self._files)
            samples.append(sample)
        batch: dict[str, Any] = {
            "moments": moments,
            "present": self._present[samples],
            "category": self._category[samples],
            "id": [self.ids[sample] for sample in samples],
        }
        return batch | ({"features": features} if self.features else {})


def whitening_statistics(
    total: Tensor, total_square: Tensor, count: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return per-channel mean and std from float64 sums (C,) over ``count`` values."""
    mean = total / count
    std = (total_square / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6)
    return tuple(mean.tolist()), tuple(std.tolist())


class LatentsWithImages(Dataset):
    """Latents with the RGB image they come from, for a teacher whose features are computed in each step.

    An item is that of ``latents`` and ``"rgb"``: (3, H, W) float32 in [-1, 1], mirrored where the view is.

    Args:
        latents: the encoded split.
        images: the same split of the dataset folder, with RGB alone and ``mirrored=True``.

    Raises:
        UserError: a sample of the latents that the folder lacks, or that is another picture there.
    """

    def __init__(self, latents: LatentShards, images: AlignedFolder) -> None:
        self.latents, self.images = latents, images
        position = {sample.id: row for row, sample in enumerate(images.samples)}
        missing = [sample_id for sample_id in latents.ids if sample_id not in position]
        if missing:
            raise UserError(
                f"{images.info.root}, split {images.split!r}, lacks {len(missing)} samples that {latents.root} holds, first "
                f"{missing[0]!r}: give the dataset folder that was encoded"
            )
        latents.refuse_other_source(images.info.root, images.samples)
        self._rows = [position[sample_id] for sample_id in latents.ids]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        view, sample = divmod(index, len(self._rows))
        image = self.images[view * len(self.images.samples) + self._rows[sample]]
        return {**self.latents[index], IMAGE: image[IMAGE]}
