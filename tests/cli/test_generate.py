"""The three uses on a tiny model with random weights: files, names, sizes, determinism."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image

from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

SAMPLE_FILES = {
    *("rgb.png", "depth.npy", "depth.png", "depth_vis.png", "normal.npy", "normal.png", "segmentation.png"),
    *("grid.png", "metadata.json"),
}


def _folders(path):
    return sorted(p.name for p in path.iterdir())


def _metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def test_generate(mmdit, tiny_pipeline_dir, tmp_path):
    common = ("--model", tiny_pipeline_dir, "--num_inference_steps", 2, "--output", "out")
    result = mmdit("generate", "torus", "cone", "torus", *common, "--seed", 5)
    assert (result.code, result.out.split()) == (0, ["out/torus_5", "out/cone_5", "out/torus_6"])
    assert {path.name for path in (tmp_path / "out" / "cone_5").iterdir()} == SAMPLE_FILES
    metadata = _metadata(tmp_path / "out" / "torus_6")
    assert metadata["category"] == "torus"
    assert (metadata["seed"], metadata["num_inference_steps"], metadata["guidance_scale"]) == (6, 2, 2.0)

    # A sample made alone by its own seed is the same one, and the same request may be repeated.
    before = np.load(tmp_path / "out" / "torus_6" / "depth.npy")
    assert mmdit("generate", "torus", *common, "--seed", 6).code == 0
    np.testing.assert_allclose(np.load(tmp_path / "out" / "torus_6" / "depth.npy"), before, atol=1e-4)

    refused = mmdit("generate", "torus", *common, "--seed", 6, "--guidance_scale", 1)
    assert refused.code == 2
    assert "guidance_scale was 2.0, now 1.0" in refused.error
    assert mmdit("generate", "torus", *common, "--seed", 6, "--guidance_scale", 1, "--overwrite").code == 0


def test_internal_guidance(mmdit, tiny_pipeline_dir, tmp_path):
    common = ("generate", "torus", "--num_inference_steps", 2, "--guidance_scale", 1)
    made = []
    for scale in (1, 1.8):
        assert mmdit(*common, "--internal_guidance_scale", scale, "--output", f"out{scale}").code == 0
        folder = tmp_path / f"out{scale}" / "torus_0"
        assert _metadata(folder)["internal_guidance_scale"] == scale
        made.append(np.load(folder / "depth.npy"))
    assert mmdit(*common, "--output", "out").code == 0
    assert "internal_guidance_scale" not in _metadata(tmp_path / "out" / "torus_0")
    assert np.array_equal(np.load(tmp_path / "out" / "torus_0" / "depth.npy"), made[0])
    assert not np.allclose(made[0], made[1], atol=1e-2)
    assert mmdit("generate", "torus", "--num_inference_steps", 2, "--output", "own").code == 0
    own = _metadata(tmp_path / "own" / "torus_0")
    assert (own["guidance_scale"], own["internal_guidance_scale"]) == (1.0, 1.8)
    assert own["internal_guidance_interval"] == [0.3, 1.0]
    assert np.array_equal(np.load(tmp_path / "own" / "torus_0" / "depth.npy"), made[1])
    refused = mmdit(*common, "--model", tiny_pipeline_dir, "--internal_guidance_scale", 1.8, "--output", "none")
    assert refused.code == 2
    assert "--internal_guidance_scale is 1.8: this model has no head on a middle block" in refused.error


def test_generate_by_id_and_scheduler(mmdit, tiny_pipeline_dir, tmp_path):
    result = mmdit("generate", 5, "--num_images", 2, "--model", tiny_pipeline_dir, "--scheduler", "heun",
                   "--num_inference_steps", 1, "--guidance_scale", 1, "--output", "out")  # fmt: skip
    assert result.code == 0
    assert _folders(tmp_path / "out") == ["torus_0", "torus_1"]
    assert "Heun" in _metadata(tmp_path / "out" / "torus_0")["scheduler"]


def test_understand_resizes_back(mmdit, tiny_pipeline_dir, tmp_path, photo):
    result = mmdit("understand", photo, "--model", tiny_pipeline_dir)
    assert result.code == 0
    folder = tmp_path / "outputs" / "understand" / "photo"
    assert np.load(folder / "depth.npy").shape == (40, 60)
    assert np.load(folder / "normal.npy").shape == (40, 60, 3)
    assert Image.open(folder / "segmentation.png").size == (60, 40)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "rgb.png")), np.asarray(Image.open(photo)))
    metadata = _metadata(folder)
    assert metadata["category"] is None
    assert metadata["conditions"]["rgb"]["path"] == str(photo)


def test_understand_at_the_models_size(mmdit, tiny_pipeline_dir, tmp_path, photo):
    assert mmdit("understand", photo, "--model", tiny_pipeline_dir, "--match_input_size", "false").code == 0
    folder = tmp_path / "outputs" / "understand" / "photo"
    assert np.load(folder / "depth.npy").shape == (64, 64)
    assert Image.open(folder / "rgb.png").size == (64, 64)


def test_understanding_does_not_depend_on_the_company(mmdit, tiny_pipeline_dir, tmp_path, photo):
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), (9, 99, 199)).save(other)
    assert mmdit("understand", photo, "--model", tiny_pipeline_dir, "--output", "alone").code == 0
    assert mmdit("understand", other, photo, "--model", tiny_pipeline_dir, "--output", "both").code == 0
    alone, both = (np.load(tmp_path / folder / "photo" / "depth.npy") for folder in ("alone", "both"))
    np.testing.assert_allclose(alone, both, atol=1e-4)


def _save(path, mode):
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8))
    elif mode == "P":
        image = Image.fromarray(grey).convert("P")
    else:
        image = Image.fromarray(grey).convert(mode)
    image.save(path)
    return grey


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGBA", "1", "CMYK"])
def test_understand_takes_any_mode(mmdit, tiny_pipeline_dir, tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    grey = _save(path, mode)
    assert mmdit("understand", path, "--model", tiny_pipeline_dir).code == 0
    written = np.asarray(Image.open(tmp_path / "outputs" / "understand" / "image" / "rgb.png"))
    assert written.shape == (20, 30, 3)
    if mode in ("L", "I;16"):
        np.testing.assert_array_equal(written[..., 0], grey)


def test_understand_turns_photos_upright(mmdit, tiny_pipeline_dir, tmp_path):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees to show
    image.save(tmp_path / "phone.jpg", exif=exif)
    assert mmdit("understand", "phone.jpg", "--model", tiny_pipeline_dir).code == 0
    assert np.load(tmp_path / "outputs" / "understand" / "phone" / "depth.npy").shape == (30, 20)


def test_condition_on_our_own_outputs(mmdit, tiny_pipeline_dir, tmp_path):
    model = ("--model", tiny_pipeline_dir, "--num_inference_steps", 2)
    assert mmdit("generate", "torus", *model).code == 0
    source = tmp_path / "outputs" / "generate" / "torus_0"
    result = mmdit("condition", "--depth", source / "depth.npy", "--category", "cone", "--num_images", 2, *model)
    assert result.code == 0
    assert "note" not in result.err
    out = tmp_path / "outputs" / "condition"
    assert _folders(out) == ["torus_0_from_depth_0", "torus_0_from_depth_1"]
    # The given map comes back as it was understood; reading clips 2% at both ends.
    np.testing.assert_allclose(
        np.load(out / "torus_0_from_depth_0" / "depth.npy"),
        np.load(out / "torus_0_from_depth_1" / "depth.npy"),
        atol=1e-5,
    )
    metadata = _metadata(out / "torus_0_from_depth_0")
    assert metadata["category"] == "cone"
    assert set(metadata["conditions"]) == {"depth"}

    rest = [f"--{name}={source / name}.png" for name in ("depth", "normal", "segmentation")]
    assert mmdit("condition", *rest, *model).code == 0
    folder = out / "torus_0_from_depth_normal_segmentation_0"
    np.testing.assert_array_equal(
        np.asarray(Image.open(folder / "segmentation.png")), np.asarray(Image.open(source / "segmentation.png"))
    )


def test_names_that_become_one_file_name_are_told_apart(mmdit, tiny_pipeline_dir, tmp_path):
    """By class, whatever else is asked for: alone or together, a class has the same folder; its id is in the metadata."""
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    names = {**pipe.id2label, 0: "a/b", 1: "a b", 2: "name" * 100, 3: "crane", 4: "crane"}
    other = MultimodalDiTPipeline(**pipe.components, modalities=pipe.modalities, id2label=names)
    other.save_pretrained(tmp_path / "model")
    common = ("--model", tmp_path / "model", "--num_inference_steps", 1, "--guidance_scale", 1, "--output", "out")
    result = mmdit("generate", "a/b", "a b", "2", "3", "4", *common)
    assert result.code == 0, result.error
    folders = result.out.split()
    assert [_metadata(tmp_path / folder)["class_id"] for folder in folders] == [0, 1, 2, 3, 4]
    assert len(set(folders)) == 5
    assert mmdit("generate", "4", "a b", *common).out.split() == [folders[4], folders[1]]
    assert mmdit("generate", "4", "--seed", 1, *common).out.split() == [folders[4].removesuffix("_0") + "_1"]


def test_a_result_of_a_version_without_class_ids_is_replaced(mmdit, tiny_pipeline_dir, tmp_path):
    common = ("--model", tiny_pipeline_dir, "--num_inference_steps", 1, "--output", "out")
    assert mmdit("generate", "torus", *common).code == 0
    path = tmp_path / "out" / "torus_0" / "metadata.json"
    metadata = json.loads(path.read_text())
    class_id = metadata.pop("class_id")
    path.write_text(json.dumps(metadata))
    assert mmdit("generate", "torus", *common).code == 0
    path.write_text(json.dumps({**metadata, "class_id": class_id + 1}))
    assert "class_id was" in mmdit("generate", "torus", *common).error


def test_steps_and_guidance_are_the_models_own(mmdit, tiny_pipeline_dir, tmp_path):
    shutil.copytree(tiny_pipeline_dir, tmp_path / "own")
    index = json.loads((tmp_path / "own/model_index.json").read_text())
    index["defaults"] = {"num_inference_steps": 3, "guidance_scale": 4.0}
    (tmp_path / "own/model_index.json").write_text(json.dumps(index))
    model = ("--model", tmp_path / "own", "--output", tmp_path / "out")
    assert mmdit("generate", "torus", *model).code == 0
    rgb = tmp_path / "out/torus_0/rgb.png"
    assert mmdit("condition", "--rgb", rgb, *model).code == 0
    assert mmdit("condition", "--rgb", rgb, "--category", "torus", "--seed", 1, *model).code == 0
    made = [("torus_0", 3, 4.0), ("torus_0_from_rgb_0", 1, 1.0), ("torus_0_from_rgb_1", 3, 4.0)]
    for name, steps, scale in made:
        metadata = json.loads((tmp_path / f"out/{name}/metadata.json").read_text())
        assert (metadata["num_inference_steps"], metadata["guidance_scale"]) == (steps, scale)


def test_lora(mmdit, tiny_pipeline_dir, tmp_path):
    """Added to the weights, recorded, and told apart from a result without it."""
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["fc1", "head.linears.1"], init_lora_weights=False))
    pipe.save_lora_weights(tmp_path / "style")
    pipe.set_adapters("default", 0.5)
    generator = [torch.Generator().manual_seed(3)]
    expected = pipe("torus", num_inference_steps=1, guidance_scale=1.0, generator=generator).depth[0]

    common = (
        "--model",
        tiny_pipeline_dir,
        "--num_inference_steps",
        1,
        "--guidance_scale",
        1,
        "--seed",
        3,
        "--output",
        "out",
    )
    lora = ("--lora", "style", "--lora_scale", 0.5)
    assert mmdit("generate", "torus", *common, *lora).code == 0
    folder = tmp_path / "out" / "torus_3"
    np.testing.assert_allclose(np.load(folder / "depth.npy"), expected, atol=1e-4)
    record = _metadata(folder)["lora"]
    assert (record["path"], record["scale"], len(record["sha256"])) == ("style", 0.5, 64)
    assert mmdit("generate", "torus", *common, *lora).code == 0
    refused = mmdit("generate", "torus", *common)
    assert refused.code == 2
    assert "lora was {'path': 'style'" in refused.error
    assert mmdit("generate", "torus", *common, "--overwrite").code == 0
    assert _metadata(folder)["lora"] is None
    assert np.abs(np.load(folder / "depth.npy") - expected).max() > 1e-3

    wrong = mmdit("understand", folder / "rgb.png", "--lora", "style")  # the bundled model is larger
    assert wrong.code == 2
    assert (
        "is of another model: blocks.0.mlp.fc1 is 2 x 16 and 64 x 2 there, and rank x 192 and 768 x rank" in wrong.error
    )
    assert (
        "LoRA 'nowhere': no such file or folder"
        in mmdit("condition", "--depth", folder / "depth.npy", "--lora", "nowhere").error
    )


def test_understand_by_an_ensemble(mmdit, tiny_pipeline_dir, tmp_path, photo):
    common = ("understand", photo, "--model", tiny_pipeline_dir, "--ensemble_size", 3)
    assert mmdit(*common).code == 0
    folder = tmp_path / "outputs" / "understand" / "photo"
    more = {f"{name}_uncertainty.{kind}" for name in ("depth", "normal", "segmentation") for kind in ("npy", "png")}
    assert {path.name for path in folder.iterdir()} == SAMPLE_FILES | more
    spread = np.load(folder / "depth_uncertainty.npy")
    assert spread.shape == (40, 60)
    assert spread.max() > 0
    assert _metadata(folder)["ensemble_size"] == 3
    assert mmdit(*common).code == 0  # its own files are no foreign ones
    assert "--ensemble_size is 0: give at least 1" in mmdit(*common[:-1], 0).error


@pytest.mark.skipif(find_spec("OpenEXR") is None, reason="needs OpenEXR")
def test_openexr_beside_the_other_files(mmdit, tiny_pipeline_dir, tmp_path):
    from mmdit.modalities.exr import read_exr

    common = ("generate", "torus", "--model", tiny_pipeline_dir, "--num_inference_steps", 1, "--output", "out")
    assert mmdit(*common, "--exr").code == 0
    folder = tmp_path / "out" / "torus_0"
    assert {path.name for path in folder.iterdir()} == SAMPLE_FILES | {"depth.exr", "normal.exr"}
    for name, channels in (("depth", None), ("normal", 3)):
        values, _ = read_exr(folder / f"{name}.exr", channels)
        np.testing.assert_array_equal(values, np.load(folder / f"{name}.npy"))
    given = ("--model", tiny_pipeline_dir, "--num_inference_steps", 1)
    assert mmdit("condition", "--depth", folder / "depth.exr", "--normal", folder / "normal.exr", *given).code == 0
    assert mmdit(*common).code == 0  # the same request, without: what it doesn't write stays
    assert {path.name for path in folder.iterdir()} == SAMPLE_FILES | {"depth.exr", "normal.exr"}


def test_openexr_without_its_library(mmdit, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    result = mmdit("generate", "torus", "--exr", "--model", "nowhere")
    assert result.code == 2
    assert "--exr: OpenEXR files need a library: pip install 'multimodal-dit[exr]'" in result.error
