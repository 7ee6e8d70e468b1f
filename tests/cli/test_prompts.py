"""``mmdit generate --prompt`` on a tiny model: names, metadata, subjects, geometry, and every bad input as one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mmdit.cli.common.prompts import prompt_names, typed_prompts
from mmdit.errors import UserError
from mmdit.storage.digests import digest_file


@pytest.fixture
def common(prompted_pipeline_dir):
    return ("--model", prompted_pipeline_dir, "--num_inference_steps", 1, "--output", "out")


@pytest.fixture
def pictures(tmp_path):
    for number, name in enumerate(("mine", "other")):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")


def _metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def _rgb(folder):
    return np.asarray(Image.open(folder / "rgb.png"))


def test_text(mmdit, common, tmp_path):
    result = mmdit("generate", "--prompt", "a red torus left of a blue cone", "--num_images", 2, "--seed", 3, *common)
    assert (result.code, result.out.split()) == (
        0, ["out/a_red_torus_left_of_a_blue_cone_3", "out/a_red_torus_left_of_a_blue_cone_4"],
    )  # fmt: skip
    assert result.err == ""
    metadata = _metadata(tmp_path / "out" / "a_red_torus_left_of_a_blue_cone_3")
    assert (metadata["prompt"], metadata["subjects"]) == ("a red torus left of a blue cone", [])
    assert (metadata["category"], metadata["seed"], metadata["guidance_scale"]) == (None, 3, 2.0)
    assert "negative_prompt" not in metadata

    # Made again alone, it is the same; another request of that name is refused.
    again = ("generate", "--prompt", "a red torus left of a blue cone", "--seed", 4, *common)
    before = _rgb(tmp_path / "out" / "a_red_torus_left_of_a_blue_cone_4").astype(int)
    assert mmdit(*again).code == 0
    assert abs(_rgb(tmp_path / "out" / "a_red_torus_left_of_a_blue_cone_4") - before).max() <= 1
    refused = mmdit(*again, "--negative_prompt", "a cone")
    assert "negative_prompt was None, now 'a cone'" in refused.error
    assert mmdit(*again, "--negative_prompt", "a cone", "--overwrite").code == 0
    assert abs(_rgb(tmp_path / "out" / "a_red_torus_left_of_a_blue_cone_4") - before).max() > 1


def test_subjects(mmdit, common, tmp_path, pictures):
    prompt = ("generate", "--prompt", "a {torus} in front of a {cone}", *common)
    result = mmdit(*prompt, "--subject", "torus=mine.png", "--subject", "cone=other.png")
    folder = "out/a_torus_in_front_of_a_cone_with_mine_other_0"
    assert (result.code, result.out.split()) == (0, [folder])
    metadata = _metadata(tmp_path / folder)
    assert metadata["prompt"] == "a {torus} in front of a {cone}"
    assert metadata["subjects"][0] == {
        "word": "torus",
        "path": "mine.png",
        "sha256": digest_file(tmp_path / "mine.png"),
    }
    assert metadata["fusing_scale"] == 0.5
    first = _rgb(tmp_path / folder)
    in_order = mmdit(*prompt, "--subject", "mine.png", "--subject", "=other.png", "--output", "again")
    assert np.array_equal(_rgb(tmp_path / in_order.out.strip()), first)
    swapped = mmdit(*prompt, "--subject", "cone=mine.png", "--subject", "torus=other.png")
    assert not np.array_equal(_rgb(tmp_path / swapped.out.strip()), first)
    text = mmdit("generate", "--prompt", "a torus in front of a cone", *common)
    alone = mmdit(*prompt, "--subject", "mine.png", "--subject", "other.png", "--fusing_scale", 0, "--output", "text")
    assert np.array_equal(_rgb(tmp_path / alone.out.strip()), _rgb(tmp_path / text.out.strip()))
    assert _metadata(tmp_path / alone.out.strip())["fusing_scale"] == 0
    shutil.copy(tmp_path / "other.png", tmp_path / "mine.png")  # the same command, another picture
    refused = mmdit(*prompt, "--subject", "torus=mine.png", "--subject", "cone=other.png")
    assert "subjects was" in refused.error


def test_several_prompts_categories_and_geometry(mmdit, common, tmp_path, pictures):
    result = mmdit("generate", "torus", "--prompt", "a red {}", "--prompt", "a blue torus", "--subject", "mine.png",
                   "--depth", "mine.png", "--depth_values", "relative", *common)  # fmt: skip
    assert result.code == 2  # a map of depth has one channel
    np.save(tmp_path / "depth.npy", np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64))
    result = mmdit("generate", "torus", "--prompt", "a red {}", "--prompt", "a blue torus", "--subject", "mine.png",
                   "--depth", "depth.npy", "--depth_values", "relative", *common)  # fmt: skip
    names = ["torus_a_red_object_with_mine_0", "torus_a_blue_torus_0"]
    assert (result.code, result.out.split()) == (0, [f"out/{name}" for name in names])
    metadata = [_metadata(tmp_path / "out" / name) for name in names]
    assert [each["category"] for each in metadata] == ["torus", "torus"]
    assert set(metadata[0]["conditions"]) == {"depth"}
    pair = mmdit("generate", "torus", "cone", "--prompt", "a red object", *common)
    assert pair.out.split() == ["out/torus_a_red_object_0", "out/cone_a_red_object_0"]
    both = mmdit("generate", "--prompt", "a cone", "--prompt", "a cone", *common)
    assert both.out.split() == ["out/a_cone_0", "out/a_cone_1"]


def test_neither_category_nor_prompt(mmdit, common, tmp_path, tiny_pipeline_dir):
    result = mmdit("generate", *common)
    assert (result.code, result.out.split()) == (0, ["out/unconditional_0"])
    assert _metadata(tmp_path / "out" / "unconditional_0")["guidance_scale"] == 1.0
    assert mmdit("generate", "--model", tiny_pipeline_dir, "--num_inference_steps", 1).code == 0


def test_names():
    with pytest.raises(UserError, match=r"--subject torus=a\.png: a\.png: no such file"):
        typed_prompts(["a {torus} left of {}"], ["torus=a.png", "b/rgb.png"])
    prompts = typed_prompts(["a red torus!", "a red torus?", "a red torus!", "x" * 500, "{{brace}}"], None)
    names = prompt_names(prompts)
    assert names[:3] == ["a_red_torus", "a_red_torus_2", "a_red_torus"]
    assert len(names[3]) <= 80
    assert names[4] == "brace"


TOO_LONG = "a red torus left of a blue cone in front of a red cone left of a torus"
SUBJECT = ("--subject", "torus=mine.png")
SUBJECTS = (*SUBJECT, "--subject", "cone=mine.png")
TWICE = (*SUBJECT, "--subject", "torus=other.png")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--prompt", "a {torus}"), "{torus} has no image: give --subject torus=FILE"),
        (("--prompt", "a {}"), "{} has no image: give --subject FILE"),
        (("--prompt", "a torus", *SUBJECT), "--subject torus=mine.png: no prompt marks 'torus': write {torus} in it"),
        (("--prompt", "a {tours}", *SUBJECT), "{tours} has no image"),
        (("--prompt", "a {torus}", *SUBJECTS), "no prompt marks 'cone': write {cone} in it; nearest"),
        (("--prompt", "a torus", "--subject", "mine.png"), "no prompt has a brace left for it"),
        (("--prompt", "a {torus}", *TWICE), "'torus' has an image already, --subject torus=mine.png"),
        (SUBJECT, "no prompt is given: give one with braces"),
        (("--prompt", "a {torus", *SUBJECT), "'{' at character 3 is not closed"),
        (("--prompt", "a torus}"), "closes nothing"),
        (("--prompt", ""), "prompt is empty"),
        (("--prompt", "  "), "prompt is empty"),
        (("--prompt", "a {torus}", "--subject", "torus="), "--subject 'torus=': give WORD=FILE"),
        (("--prompt", "a {torus}", "--subject", "torus=nowhere.png"), "--subject torus=nowhere.png: nowhere.png: no such file"),
        (("--prompt", "a {torus}", "--subject", "torus=text.png"), "text.png"),
        (("--prompt", "a {torus}", "--subject", "torus=empty.png"), "empty.png: the file is empty"),
        (("--prompt", "{a} {red} {blue} {torus} {cone}", *("--subject", "mine.png") * 5), "has 5 subjects, the model takes 4"),
        (("torus", "--prompt", "a red cone"), "names cone, and the category is 'torus'"),
        (("torus", "cone", *("--prompt", "a cone") * 3), "2 categories and 3 prompts: give as many of each"),
        (("--prompt", TOO_LONG), "has 20 tokens, the text encoder reads 16: 'left of a torus' would be lost"),
        (("--prompt", "a torrus"), "doesn't know 'torrus'; nearest are torus"),
        (("--prompt", "a torus", "--negative_prompt", "a kone"), "doesn't know 'kone'; nearest are cone"),
        (("--prompt", "a torus", "--fusing_scale", "1.5"), "--fusing_scale is 1.5: give a number from 0 to 1"),
        (("--prompt", "a torus", "--fusing_scale", "x"), "--fusing_scale is x: give a number from 0 to 1"),
        (("torsu", "--prompt", "a torus"), "unknown category 'torsu'"),
    ],
)  # fmt: skip
def test_bad_input(mmdit, common, tmp_path, pictures, arguments, expected):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    result = mmdit("generate", *arguments, *common)
    assert result.code == 2
    assert expected in result.error
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_negative_prompt_beside_a_category_has_the_guidance_of_prompts(mmdit, tmp_path):
    """The bundled model's own on categories is internal, and leads away from nothing."""
    common = ("generate", "torus", "--num_inference_steps", 2)
    for name, negative in (("away", "a cone"), ("plain", "")):
        assert mmdit(*common, "--negative_prompt", negative, "--output", name).code == 0
    away, plain = (
        json.loads((tmp_path / name / "torus_0" / "metadata.json").read_text()) for name in ("away", "plain")
    )
    assert (away["guidance_scale"], away["negative_prompt"]) == (5.0, "a cone")
    assert "internal_guidance_scale" not in away
    assert (plain["guidance_scale"], plain["internal_guidance_scale"]) == (1.0, 1.8)
    assert "negative_prompt" not in plain


def test_models_that_do_not_take_it(mmdit, tiny_pipeline_dir, prompted_pipeline_dir, tmp_path, pictures):
    for arguments in (("--prompt", "a torus"), ("torus", "--negative_prompt", "a cone")):
        result = mmdit("generate", *arguments, "--model", tiny_pipeline_dir)
        assert result.code == 2
        assert "this model takes no prompt: give class_labels" in result.error
    result = mmdit("generate", "--prompt", "a {torus}", *SUBJECT, "--model", tiny_pipeline_dir)
    assert "this model takes no subjects' images" in result.error
    result = mmdit("generate", "torus", "--fusing_scale", 0.5, "--model", tiny_pipeline_dir)
    assert "fusing_scale is 0.5, but this model has no prediction from the text alone" in result.error
    shutil.copytree(prompted_pipeline_dir, tmp_path / "bare")
    index = json.loads((tmp_path / "bare" / "model_index.json").read_text())
    for name in ("text_encoder", "tokenizer", "image_encoder", "image_processor"):
        del index[name]
        shutil.rmtree(tmp_path / "bare" / name)
    (tmp_path / "bare" / "model_index.json").write_text(json.dumps(index))
    result = mmdit("generate", "--prompt", "a torus", "--model", "bare")
    assert "this model has no text_encoder and tokenizer, which its prompts need" in result.error
