"""Images with what is cut out of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.data.captioned import CaptionedImages, ImagesWithCrops
from mmdit.data.folder import AlignedFolder
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.data.prompted import crop
from mmdit.errors import UserError
from mmdit.modalities.rgb import read_picture


def images_of(root: Path, size: int | None = None) -> AlignedFolder:
    modalities = modalities_from_dataset(read_dataset_info(root), ["rgb", "segmentation"])
    return AlignedFolder(root, "train", modalities, size=size, mirrored=True)


def test_every_picture_brings_something_that_is_named_in_it(prompt_folders) -> None:
    images = images_of(prompt_folders.data, size=32)
    pictures = ImagesWithCrops(images, seed=0)
    assert len(pictures) == len(images) == 32
    indices = [0, 3, 16]  # the last is the first, mirrored
    batch = pictures.read_batch(indices, [0, 1, 2])
    assert batch["rgb"].shape == batch["segmentation"].shape == (3, 3, 32, 32)
    torch.testing.assert_close(batch["rgb"][2], batch["rgb"][0].flip(-1))
    for index, cut in zip(indices, batch["crops"], strict=True):
        sample = images.samples[index % 16]
        picture = read_picture(sample.files["rgb"])
        entities = [entity for entity in pictures.prompts[sample.id].entities if entity.mask is not None]
        possible = [
            np.asarray(crop(picture, entity).resize((32, 32), Image.Resampling.BILINEAR)) for entity in entities
        ]
        distances = [np.abs(cut.permute(1, 2, 0).numpy() * 127.5 + 127.5 - one).mean() for one in possible]
        assert min(distances) < 6, distances


def test_draws_are_those_of_the_positions(prompt_folders) -> None:
    pictures = ImagesWithCrops(images_of(prompt_folders.data, size=16), seed=0)
    one, again = (pictures.read_batch([0, 1, 2, 3], [8, 9, 10, 11])["crops"] for _ in range(2))
    assert torch.equal(one, again)
    drawn = [pictures.read_batch([0], [position])["crops"] for position in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_a_sample_without_its_picture_brings_none(prompt_folders, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(prompt_folders.data, root)
    manifest = root / "train/manifest.jsonl"
    listed = [json.loads(line) for line in manifest.read_text().splitlines()]
    del listed[1]["rgb"]
    manifest.write_text("\n".join(map(json.dumps, listed)) + "\n")
    batch = ImagesWithCrops(images_of(root, size=16), seed=0).read_batch([0, 1, 2])
    assert batch["present"].tolist() == [[True, True], [False, True], [True, True]]
    assert batch["crops"].shape == (2, 3, 16, 16)
    pairs = CaptionedImages(images_of(root, size=16), seed=0, pair_share=1.0)
    assert len(pairs.read_batch(list(range(16)))["pairs"]) < 16


def test_pictures_without_masks_bring_none(prompt_folders, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(prompt_folders.data, root)
    lines = (root / "train/prompts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["entities"] = []
    (root / "train/prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    batch = ImagesWithCrops(images_of(root), seed=0).read_batch([0, 1])
    assert "crops" not in batch
    assert batch["rgb"].shape == (2, 3, 64, 64)

    (root / "train/prompts.jsonl").write_text("\n".join(map(json.dumps, rows[:-2])) + "\n")
    with pytest.raises(UserError, match="has no caption of 2 samples, first '000014'"):
        ImagesWithCrops(images_of(root), seed=0)
