"""An option that has no effect beside the others is refused in one line, before any work; at its default it may stand."""

from __future__ import annotations

import pytest
from PIL import Image

VIDEOS = "is about videos, and none is given: give one, or a folder of frames with --video, or leave it out"
DEPTH_FILE = "is about a file of depth, and none is given: give one, or leave it out"
FOLLOWS = "neither category nor prompt is given that it could follow: give one, or leave it out"
WEIGHED = "--lora_scale 0.5: no --lora is given that it could weigh"
WORDS = ("--prompt", "a torus")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("understand", "photo.png", "--video"), f"--video: {VIDEOS}"),
        (("understand", "photo.png", "--temporal", 0.2), f"--temporal 0.2: {VIDEOS}"),
        (("understand", "photo.png", "--frame_files", "false"), f"--frame_files false: {VIDEOS}"),
        (("understand", "photo.png", "--lora_scale", 0.5), WEIGHED),
        (("generate", "torus", "--lora_scale", 0.5), WEIGHED),
        (("translate", "photo.png", "--lora_scale", 0.5), WEIGHED),
        (("generate", "--guidance_scale", 3), f"--guidance_scale 3: {FOLLOWS}"),
        (("generate", "--rgb", "photo.png", "--guidance_scale", 3), f"--guidance_scale 3: {FOLLOWS}"),
        (("condition", "--rgb", "photo.png", "--guidance_scale", 3), f"--guidance_scale 3: {FOLLOWS}"),
        (("edit", "photo.png", "--mask", "mask.png", "--guidance_scale", 3), f"--guidance_scale 3: {FOLLOWS}"),
        (("translate", "photo.png", "--guidance_scale", 0), f"--guidance_scale 0: {FOLLOWS}"),
        (("generate", *WORDS, "--fusing_scale", 0.3), "--fusing_scale 0.3: weighs subjects' images against the words"),
        (("generate", *WORDS, "--negative_prompt", "a cone", "--guidance_scale", 1), "the scale is 1, none: give --guidance"),
        (("generate", "torus", "--depth_values", "metric"), f"--depth_values metric: {DEPTH_FILE}"),
        (("edit", "photo.png", "--mask", "mask.png", "--depth_values", "relative"), f"--depth_values relative: {DEPTH_FILE}"),
        (("translate", "photo.png", "--keep", "none", "depth"), "--keep none depth: none keeps nothing, and depth would be kept"),
        (("translate", "photo.png", "--keep", "none"), "--keep none with --strength 1 uses nothing of the images"),
        (("data", "import", "--rgb", ".", "--depth_values", "metric"), "--depth_values metric: says what depth files hold"),
        (("data", "import", "--rgb", ".", "--depth_scale", 0.01), "no --depth is given: give it, or leave it out"),
    ],
)  # fmt: skip
def test_options_without_effect(mmdit, prompted_pipeline_dir, tmp_path, photo, arguments, expected):
    Image.new("L", (60, 40), 255).save(tmp_path / "mask.png")
    model = () if arguments[0] == "data" else ("--model", prompted_pipeline_dir)
    result = mmdit(*arguments, *model, "--output", "out")
    assert result.code == 2
    assert expected in result.error
    assert not list((tmp_path / "out").glob("*"))


def test_at_its_default_it_may_stand(mmdit, prompted_pipeline_dir, photo):
    common = ("--model", prompted_pipeline_dir, "--num_inference_steps", 1, "--lora_scale", 1, "--guidance_scale", 1)
    assert mmdit("generate", *common, "--depth_values", "auto").code == 0
    still = ("--video", "false", "--temporal", 0.6, "--frame_files", "true", "--lora_scale", 1)
    assert mmdit("understand", photo, "--model", prompted_pipeline_dir, *still).code == 0
