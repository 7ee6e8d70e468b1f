"""The five tasks without a page: what they store is what the pipeline makes."""

from __future__ import annotations

import json
import os
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.apps.ui.limits import Limits
from mmdit.apps.ui.results import ResultStore, enlarged
from mmdit.apps.ui.sampling import Preview
from mmdit.apps.ui.tasks import Done, Settings, Tasks, Words
from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

LIMITS = Limits(side=96, characters=80)
SETTINGS = Settings(num_inference_steps=4, guidance_scale=2.0, seed=5)
RED = Image.new("RGB", (32, 32), (200, 30, 30))
GREEN = Image.new("RGB", (64, 64), (30, 160, 40))
SUBJECT = {"background": RED.convert("RGBA"), "layers": [], "composite": None}


@pytest.fixture
def tasks(tiny_pipe, tmp_path: Path) -> Tasks:
    return Tasks(tiny_pipe, ResultStore(tmp_path / "results", tiny_pipe.codecs), LIMITS, model="tiny", interval=0.0)


@pytest.fixture
def guided_tasks(tiny_pipe, tmp_path: Path) -> Tasks:
    """Of a model that guides from inside by itself."""
    transformer = MultimodalDiT.from_config(
        {**tiny_pipe.transformer.config, "depth": 2, "internal_guidance_depth": 1}
    ).eval()
    parameters = {**tiny_pipe.parameters, "defaults": {"internal_guidance_scale": 1.8}}
    pipe = MultimodalDiTPipeline(**{**tiny_pipe.components, "transformer": transformer}, **parameters)
    return Tasks(pipe, ResultStore(tmp_path / "results", pipe.codecs), LIMITS, model="guided", interval=0.0)


def run(events) -> tuple[list[Preview], Done]:
    *previews, done = events
    assert all(isinstance(each, Preview) for each in previews)
    assert isinstance(done, Done)
    return previews, done


def test_generated_samples_are_the_pipelines_and_lie_in_the_store(tasks, tiny_pipe):
    settings = Settings(4, 2.0, 5, num_images=2)
    previews, done = run(tasks.generate(settings, Words(category="torus")))
    expected = tiny_pipe(class_labels="torus", num_images=2, num_inference_steps=4, guidance_scale=2.0, seed=[5, 6])
    for index, seed in enumerate([5, 6]):
        for name in tiny_pipe.modalities:
            np.testing.assert_array_equal(done.samples[index][name], np.asarray(expected[name][index]))
            np.testing.assert_array_equal(tasks.store.arrays(done.name, index)[name], done.samples[index][name])
        record = json.loads((tasks.store.sample(done.name, index) / "metadata.json").read_text())
        assert record["seed"] == seed
        assert (record["task"], record["category"], record["num_inference_steps"]) == ("generate", "torus", 4)
    files = [Path(path).name for path in tasks.store.files(done.name)]
    assert {"rgb.png", "depth.npy", "depth.png", "normal.npy", "segmentation.png", "metadata.json"} <= set(files)
    assert "arrays.npz" not in files
    assert [each.step for each in previews] == [2, 3]
    assert "Seed 5 to 6, 4 steps" in done.summary


def test_a_preview_is_nearer_to_the_result_than_the_noisy_latents(tasks, tiny_pipe):
    noisy: dict[int, np.ndarray] = {}

    def keep(pipeline, step, timestep, tensors):
        from mmdit.pipelines.previews import decode_latents

        noisy[step + 1] = decode_latents(pipeline, tensors["latents"])["normal"][0]
        return {}

    tiny_pipe(class_labels="cone", num_inference_steps=4, guidance_scale=2.0, seed=5, callback_on_step_end=keep)
    previews, done = run(tasks.generate(SETTINGS, Words(category="cone")))
    result = done.samples[0]["normal"]
    for preview in previews:
        assert np.abs(preview.arrays["normal"] - result).mean() < np.abs(noisy[preview.step] - result).mean()


def test_understanding_at_the_size_of_the_picture_or_the_models(tasks, tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    _, done = run(tasks.understand(Settings(seed=0), str(path), True))
    assert "1 step" in done.summary
    np.testing.assert_array_equal(done.samples[0]["rgb"], pixels)
    assert done.samples[0]["depth"].shape == (40, 60)
    _, done = run(tasks.understand(Settings(seed=0), str(path), False))
    assert done.samples[0]["depth"].shape == (64, 64)
    with pytest.raises(UserError, match="there is no picture"):
        run(tasks.understand(Settings(), None, True))


def test_conditions_by_drawing_equal_conditions_by_array(tasks, tiny_pipe):
    grey = np.zeros((64, 64, 4), dtype=np.uint8)
    grey[20:40, 20:40] = 255
    paper = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    drawn = {
        "background": paper,
        "layers": [Image.fromarray(grey)],
        "composite": Image.alpha_composite(paper, Image.fromarray(grey)),
    }
    drawings = {name: drawn if name == "depth" else None for name in tiny_pipe.modalities}
    _, done = run(tasks.condition(SETTINGS, Words("torus"), {"depth": None}, drawings))
    disparity = np.zeros((64, 64), dtype=np.float32)
    disparity[20:40, 20:40] = 1
    expected = tiny_pipe(
        conditions={"depth": disparity}, class_labels="torus", num_inference_steps=4, guidance_scale=2.0, seed=5
    )
    np.testing.assert_array_equal(done.samples[0]["rgb"], np.asarray(expected.rgb[0]))
    np.testing.assert_array_equal(done.samples[0]["depth"], disparity)


def test_an_edit_keeps_what_is_not_painted(tasks):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    layer = np.zeros((64, 64, 4), dtype=np.uint8)
    layer[16:32, 16:48] = (255, 47, 208, 255)
    picture = Image.fromarray(pixels).convert("RGBA")
    painted = {"background": picture, "layers": [Image.fromarray(layer)], "composite": picture}
    _, done = run(tasks.edit(SETTINGS, Words("torus"), painted))
    outside = layer[..., 3] == 0
    np.testing.assert_array_equal(done.samples[0]["rgb"][outside], pixels[outside])
    assert (done.samples[0]["rgb"][~outside] != pixels[~outside]).any()
    _, done = run(tasks.edit(SETTINGS, Words(), painted, strength=0.25, match_input=True))
    np.testing.assert_array_equal(done.samples[0]["rgb"][outside], pixels[outside])
    assert "1 step," in done.summary  # a quarter of four


def test_a_translation_keeps_what_is_chosen(tasks, tiny_pipe, tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    _, done = run(tasks.translate(SETTINGS, Words("torus"), str(path), ["normal", "depth"]))
    named = {"class_labels": "torus", "num_inference_steps": 4, "guidance_scale": 2.0, "seed": 5}
    expected = tiny_pipe(conditions={"rgb": Image.fromarray(pixels)}, keep=["depth", "normal"], **named)
    for name in tiny_pipe.modalities:
        np.testing.assert_array_equal(done.samples[0][name], np.asarray(expected[name][0]))
    record = json.loads((tasks.store.sample(done.name) / "metadata.json").read_text())
    assert (record["task"], record["keep"], record["strength"]) == ("translate", ["depth", "normal"], 1.0)
    Image.fromarray(pixels[:40]).save(path)
    _, done = run(tasks.translate(SETTINGS, Words(), str(path), [], strength=0.5, match_input=True))
    assert done.samples[0]["rgb"].shape == (40, 64, 3)
    with pytest.raises(UserError, match="there is no picture to translate"):
        run(tasks.translate(SETTINGS, Words(), None, ["depth"]))
    with pytest.raises(UserError, match="nothing of the picture is used"):
        run(tasks.translate(SETTINGS, Words(), str(path), []))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (Words(category="toros"), "unknown category 'toros': did you mean 'torus'"),
        (Words(prompt="a red torus"), "prompt"),
        (Words(prompt="x" * 81), "the prompt has 81 characters: give at most 80"),
        (Words(pictures=(SUBJECT,)), "a subject's picture is given without a prompt"),
        (
            Words(prompt="a {torus} and a {}", pictures=(SUBJECT, None)),
            "pairs of braces in the prompt: 2; pictures for them: 1",
        ),
    ],
)
def test_words_that_the_model_does_not_take(tasks, words, message):
    with pytest.raises(UserError, match=message):
        run(tasks.generate(SETTINGS, words))


def test_prompts_with_subjects(prompted_pipeline_dir, tmp_path):
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

    pipe = MultimodalDiTPipeline.from_pretrained(prompted_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    tasks = Tasks(pipe, ResultStore(tmp_path / "results", pipe.codecs), LIMITS)
    assert tasks.takes_prompts
    assert tasks.fuses_subjects
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 8:16] = True
    stroke = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    empty = {"background": None, "layers": [], "composite": None}
    made = []
    for layers, subject in (([], RED), ([Image.merge("RGBA", [stroke] * 4)], (RED, mask))):
        pictures = (empty, None, {**SUBJECT, "layers": layers})
        words = Words(prompt="a red {torus}", negative_prompt="a cone", pictures=pictures, fusing_scale=0.8)
        _, done = run(tasks.generate(SETTINGS, words))
        expected = pipe(
            prompt="a red {torus}",
            subjects=[subject],
            negative_prompt="a cone",
            fusing_scale=0.8,
            num_inference_steps=4,
            guidance_scale=2.0,
            seed=5,
        )
        np.testing.assert_array_equal(done.samples[0]["rgb"], np.asarray(expected.rgb[0]))
        made.append(done.samples[0]["rgb"])
    assert (made[0] != made[1]).any()

    # The same where a picture is changed: a negative prompt alone counts too
    photo = tmp_path / "photo.png"
    GREEN.save(photo)
    given = {"conditions": {"rgb": GREEN}, "num_inference_steps": 4, "guidance_scale": 2.0, "seed": 5}
    cone, painted = {"prompt": "a {cone}", "subjects": [RED], "fusing_scale": 0.5}, np.ones((64, 64), dtype=bool)
    words = Words(prompt="a {cone}", pictures=(SUBJECT,), fusing_scale=0.5)
    drawing = {"background": GREEN.convert("RGBA"), "layers": [Image.new("RGBA", (64, 64), "white")], "composite": None}
    for events, expected in (
        (tasks.translate(SETTINGS, words, str(photo), ["depth"]), pipe(**given, **cone, keep=["depth"])),
        (tasks.edit(SETTINGS, words, drawing), pipe(**given, **cone, mask=painted)),
        (
            tasks.translate(SETTINGS, Words(negative_prompt="a cone"), str(photo), ["depth"]),
            pipe(**given, negative_prompt="a cone", keep=["depth"]),
        ),
    ):
        np.testing.assert_array_equal(run(events)[1].samples[0]["rgb"], np.asarray(expected.rgb[0]))


@pytest.mark.skipif(find_spec("OpenEXR") is None, reason="needs OpenEXR")
def test_openexr_files_are_those_of_the_command_line(tiny_pipe, tmp_path):
    from mmdit.cli.common.output import Sample, sample_files

    store = ResultStore(tmp_path / "results", tiny_pipe.codecs, exr=True)
    _, done = run(Tasks(tiny_pipe, store, LIMITS).generate(Settings(1, 1.0, 0), Words()))
    expected = sample_files(Sample("x", done.samples[0], {}), tiny_pipe.modalities, exr=True)
    written = {Path(path).name: Path(path).read_bytes() for path in store.files(done.name)}
    assert {name for name in written if name.endswith(".exr")} == {"depth.exr", "normal.exr"}
    for name in ("depth.exr", "normal.exr"):
        assert written[name] == expected[name]


def test_a_visitor_who_leaves_ends_the_call_early(tasks, tiny_pipe):
    steps = []
    original = type(tiny_pipe.scheduler).step

    def counted(self, *arguments, **named):
        steps.append(1)
        time.sleep(0.02)
        return original(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tiny_pipe.scheduler), "step", counted)
        events = tasks.generate(Settings(30, 1.0, 0), Words())
        next(events)
        events.close()
        _, done = run(tasks.generate(Settings(1, 1.0, 0), Words()))  # waits for the one before it
    assert len(steps) < 20
    assert done.samples


def test_a_server_that_ends_makes_nothing_more(tasks, tiny_pipe):
    running = tasks.generate(Settings(1000, 1.0, 0), Words())
    next(running)
    waiting = threading.Thread(target=lambda: refused(tasks.generate(Settings(1000, 1.0, 0), Words())))
    waiting.start()
    begun = time.monotonic()
    tasks.sampler.close()
    refused(running)
    waiting.join(10)
    assert not waiting.is_alive()
    refused(tasks.generate(SETTINGS, Words()))
    assert time.monotonic() - begun < 10


def refused(events) -> None:
    with pytest.raises(UserError, match="the server was ended"):
        list(events)


def test_equal_names_are_told_apart(tiny_pipe):
    from mmdit.apps.ui.tasks import _categories

    names = {**tiny_pipe.id2label, 0: "crane", 3: "crane"}
    pipe = MultimodalDiTPipeline(**tiny_pipe.components, **{**tiny_pipe.parameters, "id2label": names})
    found = _categories(pipe)
    assert found["crane (0)"] == 0
    assert found["crane (3)"] == 3
    assert len(found) == len(names)


def test_old_results_go_and_names_are_no_paths(tasks):
    store = tasks.store
    store.keep_results = 2
    _, done = run(tasks.generate(Settings(1, 1.0, 0), Words()))
    for name in ("", "..", "../results", "0" * 32, done.name + "/0"):
        with pytest.raises(UserError, match="no longer kept"):
            store.arrays(name)
    with pytest.raises(UserError, match="no longer kept"):
        store.arrays(done.name, 1)
    old = time.time() - store.keep_seconds - 10
    os.utime(store.folder / done.name, (old, old))
    store.clean()
    with pytest.raises(UserError, match="no longer kept: make it again"):
        store.files(done.name)
    names = [store.write(done.samples, [{}]) for _ in range(4)]
    store.clean()
    assert sum((store.folder / name).exists() for name in names) == 2


def test_previews_push_out_no_result(tasks):
    store = tasks.store
    store.keep_results = 2
    _, done = run(tasks.generate(Settings(1, 1.0, 0), Words()))
    shown = [store.draw(done.samples[0]) for _ in range(5)]
    store.clean()
    assert store.files(done.name)
    assert all(Path(path).is_file() for drawn in shown for path in drawn.values())
    folder = Path(shown[0]["rgb"]).parent
    os.utime(folder, (1, 1))
    store.clean()
    assert not folder.exists()
    assert Path(shown[1]["rgb"]).is_file()


def test_the_record_has_the_guidance_of_the_call(guided_tasks):
    """RGB alone is understanding on the tab of conditions too, which has no guidance from inside."""
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    store = guided_tasks.store
    picture.save(store.folder.parent / "given.png")
    files = {"rgb": str(store.folder.parent / "given.png")}
    for task, scales in (
        (guided_tasks.condition(Settings(1, None, 0), Words(), files, {}), (2.0, None)),
        (guided_tasks.generate(Settings(1, None, 0), Words()), (2.0, 1.8)),
        (guided_tasks.generate(Settings(1, 1.5, 0), Words()), (1.5, None)),
    ):
        _, done = run(task)
        record = json.loads((store.sample(done.name) / "metadata.json").read_text())
        assert (record["guidance_scale"], record.get("internal_guidance_scale")) == scales


def test_small_pictures_are_enlarged_by_whole_factors():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    large = enlarged(picture, 8)
    assert large.shape == (6, 9, 3)
    np.testing.assert_array_equal(large[::3, ::3], picture)
    assert enlarged(large, 8).shape == large.shape
