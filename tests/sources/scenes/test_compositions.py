"""Splits for prompts: what is on disk is what the layouts say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mmdit.data.check import check_dataset
from mmdit.data.lines import Rules
from mmdit.data.prompts import PROMPTS, read_prompts
from mmdit.errors import UserError
from mmdit.sources.scenes.compositions import COMPOSITIONS
from mmdit.sources.scenes.dataset import SEGMENTATION_CLASSES, render_dataset
from mmdit.sources.scenes.subjects import sample_subject_layout

NUM_SCENES = 12  # a block and a half
CLASS_IDS = {entry["name"]: entry["id"] for entry in SEGMENTATION_CLASSES}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("subjects") / "data"
    render_dataset(path, num_samples=NUM_SCENES, seed=3, num_workers=0, composition="subjects")
    return path


def test_check_finds_nothing(dataset):
    assert check_dataset(dataset).problems == ()


def test_categories_are_of_scenes_with_one_subject(dataset):
    rows = [json.loads(line) for line in (dataset / "train" / "manifest.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        layout = sample_subject_layout(3, "train", index)
        assert row.get("category") == (None if layout.relation else layout.objects[0].category)


def test_masks_and_boxes_are_the_objects(dataset):
    prompts = read_prompts(Rules(dataset, "train", None, None))
    assert len(prompts) == NUM_SCENES
    for index, sample in enumerate(prompts.values()):
        layout = sample_subject_layout(3, "train", index)
        labels = np.asarray(Image.open(dataset / "train" / "segmentation" / f"{sample.id}.png"))
        assert len(sample.entities) >= len(layout.objects)
        for placed, entity in zip(layout.objects, sample.entities, strict=False):
            mask = np.asarray(Image.open(entity.mask))
            assert np.array_equal(mask, labels == CLASS_IDS[placed.category])
            x0, y0, x1, y1 = entity.box
            assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
            assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()  # noqa: PT018


def test_other_pictures_show_the_same_subject_alone(dataset):
    """Where they are rendered: the second block ends after its four lone scenes."""
    for index, sample in enumerate(read_prompts(Rules(dataset, "train", None, None)).values()):
        layout = sample_subject_layout(3, "train", index)
        for number, entity in enumerate(sample.entities[: len(layout.objects)]):
            others = [sample_subject_layout(3, "train", int(path.stem)) for path in entity.images]
            if number < len(layout.subjects):
                assert others
            assert all(other.subjects == (layout.subjects[number],) for other in others)
            assert f"{index:06d}" not in {path.stem for path in entity.images}


def test_floor_wall_and_style_are_entities_with_the_partners_picture(tmp_path):
    """Of pairs: the first words of the caption name them, their mask is what the labels say, the partner shows them."""
    render_dataset(tmp_path / "data", num_samples=40, seed=1, num_workers=0, composition="subjects")
    said = set()
    for index, sample in enumerate(read_prompts(Rules(tmp_path / "data", "train", None, None)).values()):
        layout = sample_subject_layout(1, "train", index)
        labels = np.asarray(Image.open(tmp_path / "data" / "train" / "segmentation" / f"{sample.id}.png"))
        for entity in sample.entities[len(layout.objects) :]:
            name = entity.phrase.split()[-1]
            said.add((name, bool(layout.relation)))
            for caption, span in zip(sample.captions, entity.spans, strict=True):
                assert span is None or caption[slice(*span)] == entity.phrase
                assert span is not None or f"{entity.phrase}" not in caption
            if name == "scene":
                assert entity.mask is None
            else:
                assert np.array_equal(np.asarray(Image.open(entity.mask)), labels == CLASS_IDS[name])
            others = [sample_subject_layout(1, "train", int(path.stem)) for path in entity.images]
            assert [(o.floor, o.wall) for o in others] == [(layout.floor, layout.wall)] * bool(layout.relation)
    assert said == {("floor", True), ("wall", True), ("floor", False), ("wall", False), ("scene", True)}


def test_mixed_is_both_kinds_by_turns(tmp_path):
    render_dataset(tmp_path / "data", num_samples=24, seed=3, num_workers=0, composition="mixed")
    mixed, main, subjects = (COMPOSITIONS[name] for name in ("mixed", "main", "subjects"))
    for index in range(32):
        block, place = divmod(index, 8)
        part = (main, subjects)[block % 2]
        assert mixed.layout(3, "train", index, False, 1) == part.layout(3, "train", block // 2 * 8 + place, False, 1)
        assert mixed.category(3, "train", index) == part.category(3, "train", block // 2 * 8 + place)
    for index, sample in enumerate(read_prompts(Rules(tmp_path / "data", "train", None, None)).values()):
        layout = mixed.layout(3, "train", index, False, 1)
        for number, entity in enumerate(sample.entities[: len(layout.subjects)]):
            others = [mixed.layout(3, "train", int(path.stem), False, 1) for path in entity.images]
            assert others
            assert all(other.subjects == (layout.subjects[number],) for other in others)
    assert check_dataset(tmp_path / "data").problems == ()


def test_scenes_of_one_main_object_are_described_too(tmp_path):
    render_dataset(tmp_path / "data", num_samples=2, seed=3, num_workers=0)
    assert len(read_prompts(Rules(tmp_path / "data", "train", None, None))) == 2
    (tmp_path / "data" / "train" / PROMPTS).unlink()
    for path in (tmp_path / "data" / "train" / "prompts").iterdir():
        path.unlink()
    render_dataset(tmp_path / "data", num_samples=2, seed=3, num_workers=0)  # as an earlier version left it
    assert not (tmp_path / "data" / "train" / PROMPTS).exists()
    assert check_dataset(tmp_path / "data").problems == ()


def test_another_composition_in_a_folder_is_refused(dataset):
    with pytest.raises(UserError, match="composition was 'subjects', now 'main'"):
        render_dataset(dataset, num_samples=1, seed=3, num_workers=0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"composition": "subject"}, "did you mean 'subjects'"),
        ({"composition": "subjects", "max_distractors": 2}, "1 at most"),
    ],
)
def test_bad_arguments(tmp_path, settings, told):
    with pytest.raises(UserError, match=told):
        render_dataset(tmp_path / "data", num_samples=1, num_workers=0, **settings)


def test_the_table():
    assert list(COMPOSITIONS) == ["main", "subjects", "mixed"]
