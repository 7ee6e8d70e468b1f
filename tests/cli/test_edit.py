"""``mmdit edit`` and ``translate`` on a tiny model: what is kept, names, metadata, and bad input in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def mask(tmp_path):
    """A mask for ``photo``, 60 x 40 (width x height): its right half, drawn white on transparent."""
    pixels = np.zeros((40, 60, 4), dtype=np.uint8)
    pixels[:, 30:] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    return path


def test_edit_keeps_the_pixels_outside(mmdit, tiny_pipeline_dir, tmp_path, photo, mask):
    common = ("edit", photo, "--mask", mask, "--model", tiny_pipeline_dir, "--num_inference_steps", 2)
    result = mmdit(*common, "--category", "cone", "--num_images", 2, "--seed", 3)
    assert (result.code, result.out.split()) == (0, [f"outputs/edit/photo_edited_cone_{seed}" for seed in (3, 4)])
    folder, given = tmp_path / "outputs/edit/photo_edited_cone_3", np.asarray(Image.open(photo))
    made = np.asarray(Image.open(folder / "rgb.png"))
    assert np.array_equal(made[:, :30], given[:, :30])
    assert not np.array_equal(made[:, 30:], given[:, 30:])
    assert np.load(folder / "depth.npy").shape == (40, 60)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["strength"], metadata["mask"]["path"], metadata["category"]) == (1.0, str(mask), "cone")
    half = mmdit(*common, "--strength", 0.5, "--match_input_size", "false", "--output", "half")
    assert (half.code, half.out.split()) == (0, ["half/photo_edited_0"])
    assert Image.open(tmp_path / "half/photo_edited_0/rgb.png").size == (64, 64)


def test_edit_takes_all_modalities_and_any_mask(mmdit, tiny_pipeline_dir, tmp_path, photo, mask):
    assert mmdit("understand", photo, "--model", tiny_pipeline_dir, "--output", "u").code == 0
    np.save(tmp_path / "m.npy", np.eye(40, 60, dtype=np.uint8))
    given = [f"--{name}" for name in ("depth", "normal", "segmentation")]
    files = [tmp_path / "u" / "photo" / name for name in ("depth.npy", "normal.npy", "segmentation.png")]
    maps = [word for pair in zip(given, files, strict=True) for word in pair]
    result = mmdit("edit", photo, "--mask", "m.npy", *maps, "--model", tiny_pipeline_dir, "--num_inference_steps", 1)
    assert result.code == 0, result.err
    made = np.asarray(Image.open(tmp_path / "outputs/edit/photo_edited_0/segmentation.png"))
    before = np.asarray(Image.open(files[2]))
    outside = np.eye(40, 60) == 0
    assert np.array_equal(made[outside], before[outside])


def test_edit_with_a_prompt(mmdit, prompted_pipeline_dir, photo, mask):
    result = mmdit("edit", photo, "--mask", mask, "--prompt", "a red {cone}", "--subject", f"cone={photo}",
                   "--model", prompted_pipeline_dir, "--num_inference_steps", 1)  # fmt: skip
    assert (result.code, result.out) == (0, "outputs/edit/photo_edited_a_red_cone_with_photo_0\n")


def test_translate(mmdit, tiny_pipeline_dir, tmp_path, photo):
    Image.open(photo).resize((20, 30)).save(tmp_path / "other.png")
    common = ("translate", photo, tmp_path / "other.png", "--model", tiny_pipeline_dir, "--num_inference_steps", 2)
    result = mmdit(*common, "--category", "torus")
    names = ["photo_translated_torus_0", "other_translated_torus_0"]
    assert (result.code, result.out.split()) == (0, [f"outputs/translate/{name}" for name in names]), result.err
    assert mmdit("understand", photo, "--model", tiny_pipeline_dir, "--output", "u").code == 0
    folder = tmp_path / "outputs/translate" / names[0]
    np.testing.assert_allclose(np.load(folder / "normal.npy"), np.load(tmp_path / "u/photo/normal.npy"), atol=1e-4)
    assert json.loads((folder / "metadata.json").read_text())["keep"] == ["depth", "normal", "segmentation"]
    assert Image.open(tmp_path / "outputs/translate" / names[1] / "rgb.png").size == (20, 30)
    some = mmdit(*common, "--output", "some", "--strength", 0.5, "--keep", "normal", "depth")
    assert some.code == 0
    metadata = json.loads((tmp_path / "some/photo_translated_0/metadata.json").read_text())
    assert (metadata["keep"], metadata["strength"]) == (["depth", "normal"], 0.5)
    assert mmdit(*common, "--output", "none", "--strength", 0.5, "--keep", "none").code == 0


def test_condition_takes_a_prompt(mmdit, prompted_pipeline_dir, tmp_path, photo):
    result = mmdit("condition", "--rgb", photo, "--prompt", "a red cone", "--model", prompted_pipeline_dir,
                   "--num_inference_steps", 1)  # fmt: skip
    assert result.code == 0, result.err
    metadata = json.loads((tmp_path / "outputs/condition/photo_from_rgb_0/metadata.json").read_text())
    assert (metadata["prompt"], metadata["guidance_scale"]) == ("a red cone", 2.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["edit", "--mask", "mask.png"], "missing IMAGE; see 'mmdit edit --help'"),
        (["edit", "photo.png"], "missing --mask; see 'mmdit edit --help'"),
        (["edit", "photo.png", "--mask", "nowhere.png"], "--mask nowhere.png: no such file"),
        (["edit", "nowhere.png", "--mask", "mask.png"], "nowhere.png: no such file"),
        (["edit", "photo.png", "--mask", "small.png"], "--mask small.png: is 5 x 6 (height x width), photo.png 40 x 60"),
        (["edit", "photo.png", "--mask", "empty.png"], "--mask empty.png: mask is 0 everywhere"),
        (["edit", "photo.png", "--mask", "odd.npy"], "--mask odd.npy: mask holds values from 7 to 7"),
        (["edit", "photo.png", "--mask", "mask.png", "--strength", "1.5"], "--strength is 1.5: give a number from 0 to 1"),
        (["edit", "photo.png", "--mask", "mask.png", "--strength", "0.01"], "strength 0.01 of 25 steps leaves no step"),
        (["edit", "photo.png", "--mask", "mask.png", "--category", "cne"], "unknown category 'cne'"),
        (["edit", "photo.png", "--mask", "mask.png", "--depth", "five.npy"], "IMAGE 40 x 60, --depth 5 x 5"),
        (["edit", "photo.png", "--mask", "mask.png", "--given", "rgb=photo.png"], "rgb is given twice, also as IMAGE"),
        (["translate"], "missing IMAGE_OR_DIR"),
        (["translate", "photo.png", "--strength", "-1"], "--strength is -1: give a number from 0 to 1"),
        (["translate", "photo.png", "--keep", "rgb"], "--keep rgb: it is what is translated: keep any of depth"),
        (["translate", "photo.png", "--keep", "dept"], "--keep: unknown modality 'dept'"),
        (["translate", "--keep", "depth", "photo.png"], "missing IMAGE_OR_DIR"),
        (["translate", "photo.png", "--keep", "depth", "mask.png"], "images stand before --keep"),
        (["translate", "photo.png", "--keep", "none"], "--keep none with --strength 1 uses nothing of the images"),
    ],
)  # fmt: skip
def test_bad_input(mmdit, tiny_pipeline_dir, tmp_path, photo, mask, arguments, expected):
    Image.new("L", (6, 5), 255).save(tmp_path / "small.png")
    Image.new("L", (60, 40)).save(tmp_path / "empty.png")
    np.save(tmp_path / "odd.npy", np.full((40, 60), 7))
    np.save(tmp_path / "five.npy", np.ones((5, 5), dtype=np.float32))
    result = mmdit(*arguments, "--model", tiny_pipeline_dir)
    assert result.code == 2, result.err
    assert expected in result.error


def test_keep_without_a_name_is_no_image(mmdit, tiny_pipeline_dir, photo):
    result = mmdit("translate", photo, "--keep", "", "--model", tiny_pipeline_dir)
    assert result.error.endswith("unknown modality '': did you mean 'depth'? Known: depth, normal, segmentation")
