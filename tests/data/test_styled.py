"""Prompts in the style of a picture, beside those that tell its floor and wall."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.data.folder import AlignedFolder
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.data.prompts import CaptionedSample, Entity
from mmdit.data.styled import StyledPrompts, captions_without
from mmdit.errors import UserError
from mmdit.modalities.rgb import read_picture
from mmdit.prompt import IMAGE_WORD


def images_of(root: Path) -> AlignedFolder:
    modalities = modalities_from_dataset(read_dataset_info(root), ["rgb", "segmentation"])
    return AlignedFolder(root, "train", modalities, mirrored=True)


def edited(root: Path, target: Path, edit) -> Path:
    """A copy of a dataset whose rows of prompts.jsonl are ``edit``ed."""
    shutil.copytree(root, target)
    file = target / "train/prompts.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        edit(row)
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return target


def test_a_style_is_told_by_squares_of_the_same_picture(prompt_folders) -> None:
    images = images_of(prompt_folders.data)
    prompts = StyledPrompts(images, seed=0)
    assert len(prompts) == len(images) == 32
    batch = prompts.read_batch(list(range(32)), list(range(32)))
    assert len(batch["kept"]) == len(batch["id"]) == 32
    assert len(batch["styled"]) == len(batch["told"]) > 16
    pictures = {
        np.asarray(read_picture(sample.files["rgb"])).tobytes(): prompts.prompts[sample.id] for sample in images.samples
    }
    words, found = set(), 0
    for styled, told in zip(batch["styled"], batch["told"], strict=True):
        head, word = styled.text.split(" in the style of the ")
        words.add(word)
        assert styled.words == (word,)
        assert told.words == ("floor", "wall")
        assert told.text == f"{head} on a floor against a wall"
        scene, (floor, wall) = np.asarray(styled.images[0]), told.images
        for square in (floor, wall):
            array = np.asarray(square)
            assert array.shape[0] == array.shape[1] >= 4
            windows = np.lib.stride_tricks.sliding_window_view(scene, array.shape)[..., 0, :, :, :]
            assert (windows == array).all(axis=(-3, -2, -1)).any(), "it is not cut out of the scene"
        if sample := pictures.get(scene.tobytes()):  # not mirrored
            found += 1
            assert head in sample.captions
            number = sample.captions.index(head)
            assert all(entity.spans[number] is None for entity in sample.entities if entity.noun in ("floor", "wall"))
    assert found > 8
    assert words == {"scene", IMAGE_WORD}


def test_ordinary_prompts_ask_for_no_style(prompt_folders, tmp_path: Path) -> None:
    prompts = StyledPrompts(images_of(prompt_folders.data), seed=0)
    drawn = [
        prompt
        for position in range(8)
        for prompt in prompts.read_batch(range(32), range(position, 32 + position))["kept"]
    ]
    assert any(len(prompt.images) == 2 for prompt in drawn)
    assert any(not prompt.images for prompt in drawn)
    assert all(len(prompt.images) == len(prompt.spans) <= 2 for prompt in drawn)
    assert all(isinstance(picture, Image.Image) for prompt in drawn for picture in prompt.images)
    assert not any("in the style of" in prompt.text for prompt in drawn)

    def add_style(row) -> None:
        row["captions"] = [f"{text} like the scene" for text in row["captions"]]
        spans = [[len(text) - 5, len(text)] for text in row["captions"]]
        row["entities"].append({"phrase": "scene", "spans": spans, "box": None, "mask": None, "images": []})

    root = edited(prompt_folders.data, tmp_path / "styles", add_style)
    with pytest.raises(UserError, match=r"prompts\.jsonl: each caption names a floor, a wall or a style"):
        StyledPrompts(images_of(root), seed=0)


def test_mirrored_pictures_have_mirrored_captions(prompt_folders) -> None:
    prompts = StyledPrompts(images_of(prompt_folders.data), seed=0)
    found = 0
    for index in range(16):
        one, other = (prompts.read_batch([i], [7]) for i in (index, index + 16))
        assert other["kept"][0].text == one["kept"][0].mirrored().text
        if one["styled"]:
            found += 1
            assert other["styled"][0].text == one["styled"][0].mirrored().text
            assert np.array_equal(other["styled"][0].images[0], np.asarray(one["styled"][0].images[0])[:, ::-1])
    assert found > 8


def test_draws_are_those_of_the_positions(prompt_folders) -> None:
    prompts = StyledPrompts(images_of(prompt_folders.data), seed=0)
    one, again = (prompts.read_batch([0, 1, 2], [8, 9, 10]) for _ in range(2))
    for kind in ("styled", "told", "kept"):
        assert [prompt.template for prompt in one[kind]] == [prompt.template for prompt in again[kind]]
    assert len({prompts.read_batch([0], [position])["kept"][0].template for position in range(8)}) > 1


def test_a_picture_that_shows_no_floor_or_has_no_segmentation_has_no_style(prompt_folders, tmp_path: Path) -> None:
    root = edited(prompt_folders.data, tmp_path / "data", lambda row: None)
    images = images_of(root)
    assert StyledPrompts(images, seed=0).read_batch([0, 1])["styled"]
    file = images.samples[0].files["segmentation"]
    Image.fromarray(np.full_like(np.asarray(Image.open(file)), 1)).save(file)
    manifest = root / "train/manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    del rows[1]["segmentation"]
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    batch = StyledPrompts(images_of(root), seed=0).read_batch([0, 1])
    assert batch["styled"] == batch["told"] == []
    assert len(batch["kept"]) == 2


def test_captions_without_some_names() -> None:
    entities = (Entity("red cone", ((0, 8), (0, 8), None)), Entity("green floor", (None, (14, 25), None)))
    sample = CaptionedSample("a", ("red cone", "red cone on a green floor", "nothing"), entities)
    assert captions_without(sample, ["wall"]) == sample
    left = captions_without(sample, ["floor", "scene"])
    assert left.captions == ("red cone", "nothing")
    assert [entity.spans for entity in left.entities] == [((0, 8), None), (None, None)]
    assert captions_without(sample, ["cone", "floor"]).captions == ("nothing",)
