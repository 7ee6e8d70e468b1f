"""Writing one file of an encoded dataset, around samples that are bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mmdit.data.latents import LatentsInfo
from mmdit.encoders.guarded import GuardedFolder, collate
from mmdit.encoders.shard_jobs import DTYPES, Encoders, ShardJob, content_key
from mmdit.modalities import Codec
from mmdit.progress import Progress
from mmdit.storage.files import write_atomically


@dataclass(frozen=True)
class ShardWriter:
    """Writes files.

    Args:
        encoders: that make what they hold.
        info: of the whole output.
        batch_size, num_workers: of the loaders.
        skip_bad: leave bad samples out.
    """

    encoders: Encoders
    info: LatentsInfo
    batch_size: int
    num_workers: int
    skip_bad: bool

    @torch.no_grad()
    def write(self, job: ShardJob, samples: GuardedFolder, progress: Progress) -> dict[str, str]:
        """Write a file and its record. With bad samples, and without ``skip_bad``, the record alone is written.

        Returns:
            id -> reason, the bad samples.
        """
        folder, record = samples.folder, job.begin_record()
        states, bad = dict(record.files), dict[str, str]()
        parts: dict[str, list[Tensor]] = {key: [] for key in job.shapes}
        rows = [row for row, sample_id in enumerate(job.ids, job.start) if sample_id not in record.left_out]
        for items, batch in DataLoader(
            Subset(samples, rows),
            shuffle=False,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
        ):
            states |= {item.id: item.state for item in items}
            bad |= {item.id: item.problem for item in items if item.problem}
            progress.update(len(items))
            if batch is None:
                continue
            values = job.encode(self._views(batch, folder.codecs), batch["present"], self.encoders)
            kept = values.flatten(1).isfinite().all(dim=1)
            for row in (~kept).nonzero().flatten().tolist():
                name = batch["id"][row]
                bad[name] = f"sample {name!r}: {job.said} beyond half precision: it does not fit this data"
            for key, part in job.parts(values, batch, kept).items():
                parts[key].append(part)
        job.end_record(record, states, bad, self.skip_bad)
        record.write()
        if not record.bad:
            tensors = {key: torch.cat([_empty(job, key), *found]).contiguous() for key, found in parts.items()}
            key = content_key(job, self.info, folder, states, record.left_out)
            write_atomically(job.path, save(tensors, metadata={"content": key}))
        return bad

    def _views(self, batch: Mapping[str, Tensor], codecs: Mapping[str, Codec]) -> list[dict[str, Tensor]]:
        """The images of a batch, and their mirror images where those are stored too."""
        views = [{name: batch[name] for name in self.info.modalities}]
        if self.info.num_views == 2:
            views.append({name: codecs[name].flip(images) for name, images in views[0].items()})
        return views


def _empty(job: ShardJob, key: str) -> Tensor:
    return torch.empty((0, *job.shapes[key][1:]), dtype=DTYPES.get(key, torch.float16))
