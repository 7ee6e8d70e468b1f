import json
import math
import re

import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.metrics.prompts.evaluation import FUSING_SCALES, PromptEvaluation, ScoreTable, place
from mmdit.metrics.prompts.kinds import KINDS
from mmdit.metrics.prompts.networks import ImageTextNetwork
from mmdit.metrics.report import evaluate
from mmdit.metrics.tasks import TaskRunner
from mmdit.storage.json_object import json_safe

# The contract, from the interface: what `mmdit evaluate` adds where the split has prompts.
CONTRACT = {
    "text.one": {"category", "colour"},
    "text.two": {"present", "colour", "relation", "all"},
    "subject": {"category", "colour", "distance", "copy_rate", "image_similarity", "text_similarity"},
    "geometry": {"colour", "object_iou"},
}


def at(tree, name):
    for part in name.split("."):
        tree = tree[part]
    return tree


def test_tables_have_means_and_errors():
    table = ScoreTable(("a", "b"))
    for value in (1.0, 0.0, 0.0, 1.0):
        table.add({"a": value, "b": None if value else 0.5})
    computed = table.compute()
    assert computed["a"] == 0.5
    assert computed["standard_error"]["a"] == pytest.approx(np.std([1, 0, 0, 1], ddof=1) / 2)
    assert (computed["b"], computed["num_samples"]) == (0.5, 4)
    assert math.isnan(ScoreTable(("a",)).compute()["a"])
    tree = {}
    place(tree, "a.b.c", 1)
    place(tree, "a.d", 2)
    assert tree == {"a": {"b": {"c": 1}, "d": 2}}


def test_real_pictures_are_right_and_copies_are_copies_without_any_model(split, instrument):
    prompts, controls = PromptEvaluation(None, split, instrument, count=16, progress=False).run()
    assert prompts == {}
    real = controls["real_images"]
    assert real["text"]["one"]["category"] >= 0.9
    assert real["text"]["one"]["colour"] >= 0.9
    assert real["text"]["two"]["num_samples"] >= 6
    for name in ("floor", "wall"):
        assert real["text"][name]["category"] >= 0.9
        assert real["text"][name]["ground"] >= 0.7
    assert real["geometry"]["object_iou"] >= 0.8
    assert real["subjects"]["two"].keys() >= {"present", "colour", "relation", "all", "fused", "distance"}
    copied, other = controls["copied_references"]["subject"], controls["other_subjects"]["subject"]
    assert copied["copy_rate"] == 1.0
    assert real["subject"]["copy_rate"] == 0.0
    assert real["subject"]["distance"] < 0.2 < other["distance"]
    assert other["category"] >= 0.8
    assert other["colour"] <= 0.2
    for name in ("scene", "floor", "wall"):
        ground, copied_ground = real["style"][name], controls["copied_references"]["style"][name]
        assert ground["category"] == ground["colour"] == 1.0
        assert copied_ground["category"] < 0.5, "what shows a ground does not show the object"
        assert copied_ground["distance"] < ground["distance"] < controls["other_subjects"]["style"][name]["distance"]
    assert real["subject_small"]["num_samples"] == real["subject_described"]["num_samples"] == 16
    assert controls["copied_references"]["subject_small"]["distance"] < 0.25


def test_a_model_is_measured_whatever_the_batch_size(prompted, split, instrument, clip_folder):
    def run(batch_size):
        tasks = TaskRunner(prompted, 1, guidance_scale=2.0, seed=3)
        kinds = {name: KINDS[name] for name in ("subject", "geometry")}
        evaluation = PromptEvaluation(
            tasks, split, instrument, count=2, batch_size=batch_size, clip=ImageTextNetwork(str(clip_folder)),
            fusing_scales=(0.0, 1.0), kinds=kinds, progress=False,
        )  # fmt: skip
        return evaluation.run()

    prompts, controls = run(2)
    again, _ = run(1)
    for name, wanted in CONTRACT.items():
        if not name.startswith("text."):
            assert wanted <= at(prompts, name).keys()
            assert wanted <= at(controls["shuffled_prompts"], name).keys()
            assert wanted <= at(controls["real_images"], name).keys()
            assert at(controls["real_images_through_vae"], name)["num_samples"] == 2
    assert [row["fusing_scale"] for row in prompts["fusing"]] == [0.0, 1.0]
    assert {"text", "subject", "distance"} <= prompts["fusing"][0].keys()
    for name in ("subject", "geometry"):
        for metric, value in at(prompts, name).items():
            if isinstance(value, float):
                assert at(again, name)[metric] == pytest.approx(value, abs=1e-3, nan_ok=True)


def test_the_same_cases_in_another_way_have_the_same_noise(prompted, split, instrument):
    """And what the model's encoder can't read is left out, and said."""
    tasks = TaskRunner(prompted, 1, guidance_scale=2.0, seed=3)
    asked = []
    run = tasks.prompt
    tasks.prompt = lambda templates, indices, **options: (
        asked.append((templates, options)) or run(templates, indices, **options)
    )
    kinds = {name: KINDS[name] for name in ("subject", "subject_small", "subject_described")}
    evaluation = PromptEvaluation(tasks, split, instrument, count=2, fusing_scales=(), kinds=kinds, progress=False)
    evaluation.run()
    assert [options["noise"] for _, options in asked] == ["prompts.subject"] * 3
    whole, small, described = (options["subjects"] for _, options in asked)
    assert described is None
    for (one,), (other,) in zip(whole, small, strict=True):
        assert one.size == other.size
        assert np.asarray(other.resize((16, 16))).std() > 0
        assert not np.array_equal(np.asarray(one), np.asarray(other))
    assert not evaluation.notes

    words = {f"{one.colour} {one.category}" for case in KINDS["subject"].cases(split, 2) for one in case.objects}
    assert all(any(name in text for name in words) for text in asked[2][0])
    known = prompted.tokenizer.get_vocab()
    refused = next(text for text in asked[2][0]).split()[-1]
    assert refused in known
    prompted.prompt_encoder().check = refuse(refused)
    again = PromptEvaluation(tasks, split, instrument, count=2, fusing_scales=(), kinds=kinds, progress=False)
    prompts, _ = again.run()
    assert prompts["subject_described"]["num_samples"] == 2, "others take their places"
    (note,) = again.notes
    assert re.fullmatch(rf"prompts.subject_described: \d+ can't be read and are left out, such as: .*{refused}.*", note)


def refuse(word):
    def check(prompts):
        for prompt in prompts:
            if word in prompt.text.split():
                raise UserError(f"prompt {prompt.text!r}: the text encoder doesn't know {word!r}")

    return check


def test_the_report_of_evaluate(prompted, prompt_scenes):
    report = evaluate(
        prompted, prompt_scenes, num_samples=2, num_inference_steps=1, num_prompts=2, batch_size=2, progress=False
    )
    for name, wanted in CONTRACT.items():
        assert wanted <= at(report["prompts"], name).keys()
        for control in ("shuffled_prompts", "real_images"):
            assert wanted <= at(report["controls"][control], name).keys()
    assert report["prompts"]["subject"]["image_similarity"] is None  # needs a CLIP model
    assert [row["fusing_scale"] for row in report["prompts"]["fusing"]] == list(FUSING_SCALES)
    assert report["controls"]["real_images"]["text"]["one"]["num_samples"] == 2
    assert any("no CLIP model" in note for note in report["settings"]["notes"])
    assert report["settings"]["detector"].endswith("detector")
    assert report["timing"]["seconds_per_image"]["prompts"] > 0
    json.dumps(json_safe(report), allow_nan=False)
    without = evaluate(prompted, prompt_scenes, num_samples=1, num_inference_steps=1, num_prompts=0, progress=False)
    assert "prompts" not in without


def test_a_detector_or_clip_named_for_nothing_is_refused(tiny_pipeline_dir, prompted, prompt_scenes, make_dataset):
    options = {"num_samples": 1, "num_inference_steps": 1, "progress": False}
    with pytest.raises(UserError, match="detector is 'x', but the model takes no prompts"):
        evaluate(tiny_pipeline_dir, prompt_scenes, detector="x", **options)
    with pytest.raises(UserError, match=r"clip is 'x', but the split 'test' has no prompts\.jsonl"):
        evaluate(prompted, make_dataset(2, 64, "test"), clip="x", **options)
