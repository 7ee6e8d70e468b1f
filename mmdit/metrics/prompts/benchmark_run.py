"""A benchmark's pictures, made once and kept, and its published measures: DINO, CLIP-I, CLIP-T and FID."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mmdit.errors import UserError
from mmdit.metrics.arrays import MeanWithError
from mmdit.metrics.feature_networks import InceptionFeatures
from mmdit.metrics.generation import score_generation
from mmdit.metrics.image_sets import FolderImages
from mmdit.metrics.maps import batched
from mmdit.metrics.prompts.benchmarks import BenchmarkPrompt
from mmdit.metrics.prompts.networks import ImageNetwork, ImageTextNetwork
from mmdit.metrics.tasks import TaskRunner
from mmdit.modalities import IMAGE
from mmdit.modalities.files import png
from mmdit.modalities.rgb import read_picture
from mmdit.storage.files import write_atomically
from mmdit.storage.json_object import read_object, write_json
from mmdit.storage.requests import Request

SETTINGS = "settings.json"
_BATCH = 32


@dataclass(frozen=True)
class Made:
    """One picture to make: number ``copy`` of a prompt; ``index`` counts all of them, for the noise."""

    prompt: BenchmarkPrompt
    copy: int
    index: int

    @property
    def file(self) -> str:
        return f"{self.prompt.id}_{self.copy}.png"


class BenchmarkPictures:
    """The pictures of a benchmark in one folder, each written whole and never made twice.

    Args:
        folder: made if missing.
        prompts: what to make.
        images_per_prompt: of each.
        settings: JSON values of all that decides the pictures.

    Raises:
        UserError: a folder with pictures of other settings.
    """

    def __init__(
        self, folder: Path, prompts: Sequence[BenchmarkPrompt], images_per_prompt: int, settings: Mapping[str, Any]
    ) -> None:
        self.folder, self.prompts, self.images_per_prompt = folder, list(prompts), images_per_prompt
        self.all = [
            Made(prompt, copy, number * images_per_prompt + copy)
            for number, prompt in enumerate(self.prompts)
            for copy in range(images_per_prompt)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        request, path = Request(settings), folder / SETTINGS
        if path.is_file():
            request.refuse_other(read_object(path), folder, "pictures")
        else:
            write_json(path, request.values)

    def missing(self) -> list[Made]:
        return [made for made in self.all if not (self.folder / made.file).is_file()]

    def make(
        self, tasks: TaskRunner, *, batch_size: int, fusing_scale: float | None = None, progress: bool = True
    ) -> int:
        """Make the missing pictures and return how many they were; each one's noise is a function of seed and number."""
        missing = self.missing()
        with tqdm(total=len(missing), desc="prompts", unit="picture", disable=not progress) as bar:
            for batch in batched(missing, batch_size):
                shown = [[_open(pictures[0]) for pictures in made.prompt.subjects] for made in batch]
                maps = tasks.prompt(
                    [made.prompt.template for made in batch],
                    [made.index for made in batch],
                    subjects=shown if any(shown) else None,
                    fusing_scale=fusing_scale,
                )
                for made, each in zip(batch, maps, strict=True):
                    write_atomically(self.folder / made.file, png(each[IMAGE]))
                bar.update(len(batch))
        return len(missing)

    def of(self, prompt: BenchmarkPrompt) -> list[Image.Image]:
        """The pictures made of one prompt."""
        return [_open(self.folder / f"{prompt.id}_{copy}.png") for copy in range(self.images_per_prompt)]

    def refuse_others(self) -> None:
        """Raise UserError where the folder holds pictures that are none of these: a distance would count them."""
        wanted = {made.file for made in self.all}
        others = sorted(path.name for path in self.folder.glob("*.png") if path.name not in wanted)
        if others:
            raise UserError(f"{self.folder / others[0]}: is no picture of this benchmark: remove it")


def score_prompts(
    pictures: BenchmarkPictures, *, clip: ImageTextNetwork | None, dino: ImageNetwork | None, progress: bool = True
) -> dict[str, Any]:
    """The measures of DreamBooth (arXiv 2208.12242), and what real pictures and copies of the reference get.

    dino, clip_i: mean cosine similarity of a picture to all pictures of its subject; of several subjects the mean over
    them. clip_t: to the prompt's words. Means over pictures, with standard errors.

    Returns {"measures", "controls": {"real_images": pairs of different pictures of one subject, "copied_references"}}.
    """
    made = _Measures(clip, dino)
    copied, real = _Measures(clip, dino), _Measures(clip, dino)
    known: set[tuple[Path, ...]] = set()
    for prompt in tqdm(pictures.prompts, desc="measures", unit="prompt", disable=not progress):
        made.add(pictures.of(prompt), prompt)
        for subject in prompt.subjects:
            copied.add([_open(subject[0])], prompt)
            if subject not in known:
                known.add(subject)
                real.add_pairs(subject)
    report: dict[str, Any] = {"measures": made.compute()}
    if known:
        report["controls"] = {"real_images": real.compute(), "copied_references": copied.compute()}
    return report


class _Measures:
    """Similarities of pictures to their subjects and words; features of real pictures are computed once."""

    _NAMES = ("dino", "clip_i", "clip_t")

    def __init__(self, clip: ImageTextNetwork | None, dino: ImageNetwork | None) -> None:
        self.clip, self.networks = clip, {"dino": dino, "clip_i": clip}
        self.means = {name: MeanWithError() for name in self._NAMES}
        self.features: dict[tuple[str, Path], Tensor] = {}

    def add(self, pictures: Sequence[Image.Image], prompt: BenchmarkPrompt) -> None:
        for name, network in self.networks.items():
            if network is None or (name == "dino" and not prompt.subjects):
                continue
            features = network.images(pictures)  # (n, D)
            if prompt.subjects:
                likeness = [(features @ self._of(name, subject).T).mean(dim=1) for subject in prompt.subjects]
                for value in torch.stack(likeness).mean(dim=0).tolist():
                    self.means[name].add(value)
            if name == "clip_i":
                assert self.clip is not None
                for value in (features @ self.clip.texts([prompt.text])[0]).tolist():
                    self.means["clip_t"].add(value)

    def add_pairs(self, subject: tuple[Path, ...]) -> None:
        """Different pictures of one subject against each other."""
        for name, network in self.networks.items():
            if network is not None:
                features = self._of(name, subject)
                for first, second in combinations(range(len(subject)), 2):
                    self.means[name].add(float(features[first] @ features[second]))

    def _of(self, name: str, subject: tuple[Path, ...]) -> Tensor:
        network = self.networks[name]
        assert network is not None
        for path in subject:
            if (name, path) not in self.features:
                self.features[name, path] = network.images([_open(path)])[0]
        return torch.stack([self.features[name, path] for path in subject])

    def compute(self) -> dict[str, Any]:
        measured = {name: each for name, each in self.means.items() if each.values}
        return {
            **{name: each.mean for name, each in measured.items()},
            "standard_error": {name: each.error for name, each in measured.items()},
            "num_images": max((len(each.values) for each in measured.values()), default=0),
        }


class ResizedImages:
    """Image files as a set of one size: cropped in the middle to a square and resized by Lanczos' filter."""

    def __init__(self, name: str, paths: Sequence[Path], size: int) -> None:
        self.name, self.paths, self.size = name, list(paths), size
        self.statistics: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        for paths in batched(self.paths, batch_size):
            yield np.stack([self._read(path) for path in paths])

    def _read(self, path: Path) -> np.ndarray:
        image = _open(path)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.LANCZOS, box=box))


def score_distance(
    pictures: BenchmarkPictures, real: Sequence[Path], inception: InceptionFeatures, *, progress: bool = True
) -> dict[str, Any]:
    """FID and its company of the pictures against real ones at the pictures' size.

    Raises:
        UserError: other pictures in the folder, or fewer than two.
    """
    pictures.refuse_others()
    size = pictures.of(pictures.prompts[0])[0].width
    reference = ResizedImages(str(real[0].parent), real, size)
    made = FolderImages(pictures.folder)
    return score_generation(made, reference, inception=inception, dino=None, batch_size=_BATCH, progress=progress)


def _open(path: Path) -> Image.Image:
    return Image.fromarray(read_picture(path))
