"""Captions and subjects beside latents: drawn by position, mirrored with the view, shown by other pictures or crops."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from mmdit.data.datamodule import ResumableDataModule, StepSampler, make_loader
from mmdit.data.folder import AlignedFolder
from mmdit.data.latents import LatentShards, LatentsWithImages
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.data.prompted import (
    PromptDraw,
    PromptedLatents,
    crop,
    draw_picture,
    draw_prompt,
    is_ground,
    is_surface,
    read_mask,
)
from mmdit.data.prompts import PROMPTS, CaptionedSample, Entity
from mmdit.data.transforms import JointTransform
from mmdit.encoders.precompute import encode_dataset
from mmdit.errors import UserError
from mmdit.modalities.rgb import read_picture
from mmdit.prompt import IMAGE_WORD, parse
from mmdit.sources.scenes.dataset import render_dataset

TEXT = "a red torus left of a cone"
PICTURE = Path("other.png")
TORUS = Entity("red torus", ((2, 11), None), (1, 1, 3, 3), images=(PICTURE,))
CONE = Entity("blue cone", ((22, 26), (2, 6)), (4, 4, 8, 8), images=(PICTURE, PICTURE))
SAMPLE = CaptionedSample("0", (TEXT, "a cone"), (CONE, TORUS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A block of scenes of subjects, and their latents with mirrored views."""
    root = tmp_path_factory.mktemp("prompted")
    render_dataset(root / "data", num_samples=8, seed=3, num_workers=0, composition="subjects")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=48, out_channels=48, block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False
    )
    modalities = modalities_from_dataset(read_dataset_info(root / "data"), ["rgb"])
    encode_dataset(root / "data", root / "latents", vae.eval(), modalities, say=lambda text: None)
    return root / "data", root / "latents"


def make(folders, **draw) -> PromptedLatents:
    data, latents = folders
    return PromptedLatents(LatentShards(latents, "train", ["rgb"]), data, PromptDraw(**draw), seed=7)


def drawn(draw: PromptDraw, count: int = 400, has_picture: bool = False):
    return [shown(SAMPLE, draw, np.random.default_rng(i), has_picture) for i in range(count)]


def shown(sample, draw: PromptDraw, rng: np.random.Generator, has_picture: bool):
    """The prompt and what its pictures show."""
    one = draw_prompt(sample, draw, rng, has_picture)
    return one.prompt, [one.entities[place] for place in one.shown]


def test_templates_mark_the_words_of_the_chosen_entities():
    seen = Counter((prompt.template, tuple(e.phrase for e in chosen)) for prompt, chosen in drawn(PromptDraw()))
    assert set(seen) == {
        ("a {red torus} left of a cone", ("red torus",)),
        ("a red torus left of a {cone}", ("blue cone",)),
        ("a {red torus} left of a {cone}", ("red torus", "blue cone")),
        ("a {cone}", ("blue cone",)),
    }
    both = sum(n for (template, _), n in seen.items() if template.count("{") == 2)
    assert abs(both / sum(n for (text, _), n in seen.items() if "torus" in text) - 0.5) < 0.08


def test_shares():
    """Within four standard errors of what is asked for."""
    plain = [not chosen for _, chosen in drawn(PromptDraw(plain_share=0.3), 2000)]
    assert abs(np.mean(plain) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    words = [word for prompt, _ in drawn(PromptDraw(anonymous_share=0.4), 2000) for word in prompt.words]
    assert abs(np.mean([word == IMAGE_WORD for word in words]) - 0.4) < 4 * np.sqrt(0.4 * 0.6 / len(words))
    assert {len(chosen) for _, chosen in drawn(PromptDraw(max_subjects=1))} == {1}
    assert {len(chosen) for _, chosen in drawn(PromptDraw(max_subjects=0))} == {0}


def test_anonymous_words_keep_the_rest_in_place():
    texts = {prompt.template for prompt, _ in drawn(PromptDraw(anonymous_share=1.0))}
    assert "a {object} left of a {object}" in texts
    assert "a {object} left of a cone" in texts


def test_only_what_can_be_shown_is_chosen():
    hidden = CaptionedSample("0", ("a red torus",), (Entity("red torus", ((2, 11),), (0, 0, 4, 4)),))
    for pictures, chosen in (("other", 0), ("crop", 1), ("either", 1)):
        rng = np.random.default_rng(0)
        assert len(shown(hidden, PromptDraw(pictures), rng, has_picture=True)[1]) == chosen
        assert shown(hidden, PromptDraw(pictures), rng, has_picture=False)[1] == []


def test_mentions_are_all_that_the_caption_names():
    """With and without a picture; the prompt marks those with one."""
    cone, floor = Entity("cone", ((22, 26),), images=(PICTURE,)), Entity("grey floor", ((32, 42),), (0, 0, 4, 4))
    sample = CaptionedSample("0", ("a red torus left of a cone on a grey floor",), (cone, floor))
    for i in range(20):
        one = draw_prompt(sample, PromptDraw(anonymous_share=0.5), np.random.default_rng(i), has_picture=False)
        assert [entity.phrase for entity in one.entities] == ["cone", "grey floor"]
        assert one.mentions.words in (("cone", "grey floor"), (IMAGE_WORD, "grey floor"))
        assert one.shown == (0,)
        assert one.prompt.words == one.mentions.words[:1]
        assert one.prompt.text == one.mentions.text


def test_overlapping_words_are_marked_once():
    inner = Entity("torus", ((6, 11), None), images=(PICTURE,))
    sample = CaptionedSample("0", (TEXT,), (inner, TORUS))
    for i in range(20):
        prompt, _ = shown(sample, PromptDraw(), np.random.default_rng(i), has_picture=False)
        assert prompt.template == "a {red torus} left of a cone"


def test_crop_is_a_square_of_the_box_with_white_around_the_mask(tmp_path):
    rgb = np.arange(10 * 8 * 3, dtype=np.uint8).reshape(10, 8, 3)
    mask = np.zeros((10, 8), bool)
    mask[2:6, 3:5] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    picture = np.asarray(crop(rgb, Entity("x", (), (3, 2, 5, 6), mask=tmp_path / "mask.png")))
    assert picture.shape == (5, 5, 3)  # 4 pixels and a tenth on both sides
    np.testing.assert_array_equal(picture[0:4, 1:3], rgb[2:6, 3:5])
    assert (picture == 255).all(-1).sum() == 25 - 8
    with pytest.raises(UserError, match=r"mask.png: the mask is 10 x 8, its picture 5 x 8: give one size"):
        crop(rgb[:5], Entity("x", (), (3, 2, 5, 6), mask=tmp_path / "mask.png"))
    assert np.asarray(crop(rgb, Entity("x", (), None))).shape == (12, 12, 3)


def test_boxes_are_of_their_picture():
    rgb = np.zeros((10, 8, 3), np.uint8)
    whole = np.asarray(crop(rgb, Entity("x", (), None)))
    np.testing.assert_array_equal(np.asarray(crop(rgb, Entity("x", (), (0, 0, 1e9, 1e9)))), whole)
    with pytest.raises(UserError, match=r"'red cone': box \[8, 0, 9, 4\] is outside its picture of 8 x 10"):
        crop(rgb, Entity("red cone", (), (8, 0, 9, 4)))


@pytest.mark.parametrize("pictures", ["other", "crop"])
def test_grounds_are_shown_by_squares_of_themselves_and_styles_by_other_pictures(folders, pictures):
    whole = Entity("scene", (), (0, 0, 8, 10))
    assert is_ground(whole, 10, 8)
    assert is_ground(Entity("floor", (), (0, 6, 8, 10)), 10, 8)
    assert not is_ground(Entity("cone", (), (0, 6, 7, 10)), 10, 8)
    dataset, pairs = make(folders, pictures=pictures), range(4, 8)
    samples = [dataset.prompts[dataset.latents.ids[row]] for row in pairs]
    seen = set()
    for sample in samples:
        own = read_picture(dataset._pictures[sample.id])
        for entity in sample.entities:
            picture = np.asarray(draw_picture(entity, dataset._pictures[sample.id], pictures, np.random.default_rng(0)))
            kind = entity.phrase.split()[-1]
            from_others = any(np.array_equal(picture, read_picture(path)) for path in entity.images)
            assert from_others == (kind == "scene" or (pictures == "other" and kind not in ("floor", "wall")))
            if kind in ("floor", "wall"):
                seen.add(kind)
                assert np.array_equal(picture, np.asarray(crop(own, entity)))
                colours = own[read_mask(entity.mask)]
                assert {*map(tuple, picture.reshape(-1, 3))} <= {*map(tuple, colours)}, "nothing stands on it"
    assert seen == {"floor", "wall"}
    rows = [
        row for row, name in enumerate(dataset.latents.ids) if row not in pairs
    ]  # nothing there has another picture
    batches = [dataset.read_batch([row], [i]) for row in rows for i in range(20)]
    words = [word for batch in batches for word in parse(batch["caption"][0], batch["subjects"][0]).words]
    assert any(word.split()[-1] in ("floor", "wall") for word in words)


def test_mask_is_what_is_not_black(tmp_path):
    values = np.array([[0, 1], [128, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, True], [True, True]]


def test_a_draw_depends_on_the_position_alone(folders):
    dataset = make(folders, pictures="either", anonymous_share=0.5)
    one = dataset.read_batch([0, 5, 9], [100, 101, 102])
    again = dataset.read_batch([5, 9], [101, 102])
    assert one["caption"][1:] == again["caption"]
    assert [[s.tobytes() for s in row] for row in one["subjects"][1:]] == [
        [s.tobytes() for s in row] for row in again["subjects"]
    ]
    captions = {dataset.read_batch([5], [position])["caption"][0] for position in range(30)}
    assert len(captions) > 5
    torch.testing.assert_close(one["moments"], dataset.latents.read_batch([0, 5, 9])["moments"])


def test_every_brace_has_its_picture_and_its_mask(folders):
    dataset = make(folders, pictures="other")
    for index in range(8):
        for position in range(6):
            batch = dataset.read_batch([index], [position])
            prompt = parse(batch["caption"][0], batch["subjects"][0])
            assert len(prompt.images) == len(batch["subject_masks"][0]) == len(prompt.spans)
            for word, image in zip(prompt.words, prompt.images, strict=True):
                assert image.size == (64, 64) or word.split()[-1] in ("floor", "wall")
            if IMAGE_WORD not in prompt.words:
                ground = [word for word in prompt.words if word.split()[-1] in ("floor", "wall", "scene")]
                assert batch["shows_ground"] == [bool(ground)]


def test_mirrored_views_have_mirrored_captions_and_masks(folders):
    dataset = make(folders, pictures="crop", max_subjects=2)
    sides = 0
    for index in range(8):
        for position in range(8):
            plain, mirrored = dataset.read_batch([index], [position]), dataset.read_batch([8 + index], [position])
            swapped = plain["caption"][0].replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
            assert mirrored["caption"][0] == swapped
            sides += swapped != plain["caption"][0]
            for mask, other in zip(plain["subject_masks"][0], mirrored["subject_masks"][0], strict=True):
                assert (mask is None) == (other is None)
                assert mask is None or np.array_equal(mask[:, ::-1], other)
    assert sides > 4


def test_a_floor_is_cropped_without_what_stands_on_it(tmp_path):
    """The largest square within its mask: no outline of an object tells where to put one."""
    rgb = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[16:] = 255
    mask[16:28, 4:12] = 0  # an object that stands there
    Image.fromarray(mask).save(tmp_path / "floor.png")
    shown = np.asarray(crop(rgb, Entity("floor", (), (0, 16, 32, 32), mask=tmp_path / "floor.png")))
    np.testing.assert_array_equal(shown, rgb[16:31, 12:27])
    Image.fromarray(np.zeros_like(mask)).save(tmp_path / "floor.png")
    assert np.asarray(crop(rgb, Entity("floor", (), None, mask=tmp_path / "floor.png"))).min() == 255


def test_masks_are_of_what_was_encoded(tmp_path):
    """A picture of 16 x 24 pixels is cropped to its middle, a square, before it is encoded."""
    dataset, mask = PromptedLatents.__new__(PromptedLatents), np.zeros((16, 24), bool)
    mask[:, 2:6] = True
    dataset._transform = JointTransform((4, 4))
    seen = dataset._seen(mask)
    assert seen is not None
    assert seen.shape == (16, 16)
    assert seen[:, :2].all()
    assert not seen[:, 2:].any()
    assert dataset._seen(np.arange(24)[None] < np.full((16, 1), 3)) is None, "all outside"


def test_labels_beside_captions(folders):
    """Scene 0 has one subject and so a category; a pair has none and keeps its caption."""
    dataset = make(folders, label_share=0.5, label_alone_share=0.5)
    rows = [dataset.read_batch([0], [position]) for position in range(1000)]
    kinds = Counter((int(row["category"]) >= 0, bool(row["caption"][0])) for row in rows)
    assert set(kinds) == {(False, True), (True, True), (True, False)}
    assert abs(kinds[False, True] / 1000 - 0.5) < 0.07
    assert abs(kinds[True, False] / 1000 - 0.25) < 0.06
    assert all(dataset.read_batch([6], [position])["caption"][0] for position in range(20))
    assert dataset[0].keys() >= {"moments", "category", "caption", "subjects", "subject_masks"}


def test_a_loader_hands_positions_on(folders):
    dataset = make(folders)
    module = ResumableDataModule(dataset, None, batch_size=4, num_batches=3, seed=1)
    batches = list(module.train_dataloader())
    order = [index for batch in StepSampler(len(dataset), 4, num_batches=3, seed=1) for index in batch]
    expected = [dataset.read_batch([index], [position])["caption"][0] for position, index in enumerate(order)]
    assert [caption for batch in batches for caption in batch["caption"]] == expected
    halves = []
    for rank in range(2):
        sampler = StepSampler(len(dataset), 4, num_batches=3, seed=1, rank=rank, world_size=2, with_positions=True)
        halves.append(
            [caption for batch in make_loader(dataset, batch_sampler=sampler) for caption in batch["caption"]]
        )
    assert [caption for pair in zip(*halves, strict=True) for caption in pair] == expected


def test_bad_data(folders, tmp_path):
    _, latents = folders
    shards = LatentShards(latents, "train", ["rgb"])
    with pytest.raises(UserError, match=r"prompts.pictures 'others'.*other"):
        PromptDraw("others")
    render_dataset(tmp_path / "data", num_samples=1, seed=3, num_workers=0)
    (tmp_path / "data" / "train" / PROMPTS).write_text('{"id": "x", "captions": ["a torus"]}\n')
    with pytest.raises(UserError, match=r"has no sample that .* holds: give the dataset that was encoded"):
        PromptedLatents(shards, tmp_path / "data", PromptDraw(), 0)
    (tmp_path / "data" / "train" / PROMPTS).write_bytes(b"\n")
    with pytest.raises(UserError, match=r"prompts.jsonl: lists no prompt"):
        PromptedLatents(shards, tmp_path / "data", PromptDraw(), 0)
    (tmp_path / "data" / "train" / PROMPTS).unlink()
    with pytest.raises(UserError, match=r"prompts.jsonl: no such file; 'mmdit data render'"):
        PromptedLatents(shards, tmp_path / "data", PromptDraw(), 0)


def test_another_dataset_with_the_same_ids_is_refused(folders, tmp_path):
    data, latents = folders
    shards = LatentShards(latents, "train", ["rgb"])
    moved = Path(shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copy))  # with times of their own
    render_dataset(tmp_path / "other", num_samples=8, seed=4, num_workers=0, composition="subjects")
    for max_subjects in (0, 4):
        draw = PromptDraw(max_subjects=max_subjects)
        PromptedLatents(shards, moved, draw, 0)
        with pytest.raises(
            UserError, match=f"other: its rgb of '000000' is not the one that {latents} was encoded from"
        ):
            PromptedLatents(shards, tmp_path / "other", draw, 0)
    modalities = modalities_from_dataset(read_dataset_info(data), ["rgb"])
    with pytest.raises(UserError, match="other: its rgb of '000000' is not the one"):
        LatentsWithImages(shards, AlignedFolder(tmp_path / "other", "train", modalities, mirrored=True))
    LatentsWithImages(shards, AlignedFolder(moved, "train", modalities, mirrored=True))


def test_masks_are_read_where_they_are_asked_for(folders):
    batch = make(folders, pictures="other", masks=False).read_batch(range(8))
    assert any(batch["subject_masks"])
    assert {mask for row in batch["mention_masks"] for mask in row} == {None}


def test_a_square_of_a_large_floor_has_nothing_else_in_it(tmp_path):
    height, width = 900, 1200
    mask = np.add.outer(np.arange(height), np.arange(width)) > 1000  # below a diagonal
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rgb = np.where(mask[..., None], np.uint8(9), np.uint8(200)).repeat(3, -1)
    floor = Entity("a grey floor", (), (0, 0, width, height), mask=tmp_path / "mask.png")
    picture = np.asarray(crop(rgb, floor))
    assert (picture == 9).all()
    largest = 550  # corners at (349, 651) and (900, 1200)
    assert largest - 12 <= picture.shape[0] == picture.shape[1] <= largest
    assert is_surface(floor)
    assert not is_surface(Entity("a cat on a floor, asleep", (), floor.box, mask=floor.mask))
    assert not is_surface(Entity("floor", (), floor.box))
