"""Many samples for a benchmark: on any number of processes, resumable, each sample a function of the seed and its number.

The samples are cut into blocks, ``blocks/00000.npy`` and so on. A block belongs to one process, appears whole, and is never
made twice; processes need not know each other, or be as many as before. Whoever finds all blocks there joins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError, unknown_name
from mmdit.metrics.image_sets import BLOCKS, NpzImages, write_npz
from mmdit.metrics.maps import batched, sample_generators
from mmdit.modalities import IMAGE
from mmdit.modalities.files import is_whole
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.files import atomic_file
from mmdit.storage.json_object import read_object, write_json
from mmdit.storage.requests import Request

LABELS = ("balanced", "random", "none")
MAX_SAMPLES = 10_000_000  # more can't be meant
SETTINGS = "samples.json"


@dataclass(frozen=True)
class SamplePlan:
    """Which samples there are.

    num_samples: of all blocks; block_size: samples per file; labels: "balanced" (class i mod num_classes for sample i),
    "random" (drawn with the seed) or "none"; seed: of labels and noise.

    Raises:
        UserError: a number below one, or an unknown kind of labels.
    """

    num_samples: int
    block_size: int
    num_classes: int
    labels: str
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_samples", "block_size"):
            if not 1 <= getattr(self, name) <= MAX_SAMPLES:
                raise UserError(f"{name} is {getattr(self, name)}: give 1 to {MAX_SAMPLES}")
        if self.labels not in LABELS:
            raise unknown_name("kind of labels", self.labels, LABELS)

    def class_labels(self) -> np.ndarray:
        """Class ids int64 (num_samples,), -1 = none."""
        if self.labels == "none":
            return np.full(self.num_samples, -1, dtype=np.int64)
        if self.labels == "balanced":
            return np.arange(self.num_samples, dtype=np.int64) % self.num_classes
        return np.random.default_rng(self.seed).integers(0, self.num_classes, self.num_samples, dtype=np.int64)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_samples // self.block_size)

    def block(self, number: int) -> range:
        """The samples of a block."""
        return range(number * self.block_size, min((number + 1) * self.block_size, self.num_samples))

    def share(self, rank: int, world_size: int) -> range:
        """The blocks of one process. Raises UserError unless 0 <= rank < world_size."""
        if not 0 <= rank < world_size:
            raise UserError(f"process {rank} of {world_size}: processes count from 0")
        return range(rank, self.num_blocks, world_size)


class SampleFolder:
    """The blocks on disk, and the settings that made them.

    Args:
        folder: made if missing.
        plan: the samples to make.
        settings: JSON values; all processes of a folder must have the same, those of ``hardware`` apart.
        hardware: recorded beside them, of the process that came first.

    Raises:
        UserError: a folder with samples of other settings.
    """

    def __init__(
        self, folder: Path, plan: SamplePlan, settings: Mapping[str, Any], hardware: Mapping[str, Any]
    ) -> None:
        self.folder, self.plan = folder, plan
        (folder / BLOCKS).mkdir(parents=True, exist_ok=True)
        path = folder / SETTINGS
        request = Request(settings)
        if path.exists():
            found = read_object(path).object("settings")
            request.refuse_other(found, folder, "samples")
        else:
            write_json(path, {"settings": request.values, "hardware": dict(hardware)})

    def path(self, number: int) -> Path:
        return self.folder / BLOCKS / f"{number:05d}.npy"

    def read(self, number: int) -> np.ndarray:
        """A block, uint8 (n, H, W, 3). Raises UserError where it is damaged."""
        path = self.path(number)
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: damaged ({error}): remove it and run the command again") from None
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(self.plan.block(number)):
            raise UserError(f"{path}: holds {images.dtype} {images.shape}: remove it and run the command again")
        return images

    def write(self, number: int, images: np.ndarray) -> None:
        with atomic_file(self.path(number)) as file:
            np.save(file, images, allow_pickle=False)

    def missing(self) -> list[int]:
        """Return the numbers of the blocks that are missing, or were cut off."""
        return [number for number in range(self.plan.num_blocks) if not is_whole(self.path(number))]

    def join(self) -> Path:
        """Write the blocks as one .npz, named as ADM names them, and return its path. Raises UserError for a bad block."""
        height, width = self.read(0).shape[1:3]
        shape = (self.plan.num_samples, height, width, 3)
        path = self.folder / f"samples_{'x'.join(map(str, shape))}.npz"
        if not _holds(path, shape):
            blocks: Iterator[np.ndarray] = (self.read(number) for number in range(self.plan.num_blocks))
            labels = None if self.plan.labels == "none" else self.plan.class_labels()
            write_npz(path, blocks, shape, labels)
        return path


def _holds(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether an .npz is there, with all its members, and images of this shape."""
    try:
        return path.is_file() and NpzImages(path).shape == shape
    except UserError:
        return False


def make_block(
    pipe: MultimodalDiTPipeline,
    plan: SamplePlan,
    number: int,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    batch_size: int,
    size: int | None = None,
) -> np.ndarray:
    """RGB of one block, uint8 (n, H, W, 3). ``size``: pixels, None = the model's own."""
    labels, made = plan.class_labels(), []
    height, width = (size, size) if size else pipe.native_shape
    for indices in batched(plan.block(number), batch_size):
        output: Any = pipe(
            class_labels=[None if labels[index] < 0 else int(labels[index]) for index in indices],
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            generator=sample_generators(plan.seed, "samples", indices),
            output_type="np",
        )
        made.append(pipe.codecs[IMAGE].from_output(output[IMAGE]))
    return np.concatenate(made)
