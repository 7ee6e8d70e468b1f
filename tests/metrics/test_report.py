import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.errors import UserError
from mmdit.metrics.depth import DepthMetrics
from mmdit.metrics.maps import sample_generators
from mmdit.metrics.report import depth_range, evaluate
from mmdit.metrics.samples import EvaluationSamples
from mmdit.pipelines.conditions import encode_conditions, read_conditions
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.sources.scenes.dataset import SEGMENTATION_CLASSES
from mmdit.storage.json_object import json_safe

# The contract, from the interface: report.json of `mmdit evaluate`.
DEPTH, NORMAL = {"abs_rel", "delta1", "delta1_05"}, {"mean_angle", "within_11_25", "mean_angle_objects"}
SEGMENTATION = {"miou", "pixel_accuracy", "object_iou", "main_object_accuracy"}
MAPS = {"depth": DEPTH, "normal": NORMAL, "segmentation": SEGMENTATION}
SETTINGS = {"model", "split", "num_samples", "num_inference_steps", "guidance_scale", "seed"}
NUM_SAMPLES = 3


@pytest.fixture(scope="module")
def pipe(tiny_pipeline_dir):
    return MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)


@pytest.fixture
def dataset(make_dataset):
    """Labels 0, 1 and 5 are floor, wall and cone of the scenes."""
    return make_dataset(NUM_SAMPLES, 32, "test", segmentation_classes=list(SEGMENTATION_CLASSES))


@pytest.fixture(scope="module")
def kept():
    """The first report of the module: the dataset is the same in every test."""
    return {}


@pytest.fixture
def report(pipe, dataset, kept):
    if not kept:
        kept.update(measure(pipe, dataset))
    return copy.deepcopy(kept)


def measure(pipe, dataset, **kwargs):
    return evaluate(pipe, dataset, progress=False, **{"num_inference_steps": 2, "batch_size": 2, **kwargs})


def without_time(report):
    report = copy.deepcopy(report)
    del report["timing"], report["settings"]["data"]
    return report


def test_the_report_has_every_key_of_the_interface_and_is_json(report):
    for part in (report["understanding"], report["conditioning"], report["controls"]["shuffled_understanding"]):
        assert part.keys() == MAPS.keys()
        for name, wanted in MAPS.items():
            assert wanted <= part[name].keys()
            assert all(isinstance(part[name][key], float) for key in wanted if key != "main_object_accuracy")
    assert report["conditioning"]["depth"]["num_images"] == NUM_SAMPLES
    assert MAPS.keys() <= report["controls"]["vae_only"].keys()
    assert {"frechet_distance", "category_accuracy", "consistency"} <= report["generation"].keys()
    for part in (report["generation"]["consistency"], report["controls"]["shuffled_consistency"]):
        assert {"depth_normal_angle", "segmentation_agreement"} <= part.keys()
    assert report["settings"].keys() >= SETTINGS
    assert report["settings"]["num_samples"] == NUM_SAMPLES
    assert report["settings"]["num_inference_steps"] == 2
    assert all(value > 0 for value in report["timing"]["seconds_per_image"].values())
    assert report["generation"]["frechet_distance"] is None
    assert "frechet_distance" in report["settings"]["notes"][0]
    json.dumps(report, allow_nan=False)


def test_the_report_is_a_function_of_the_seed_whatever_the_batch_size(pipe, dataset, report):
    assert without_time(measure(pipe, dataset)) == without_time(report)
    other = measure(pipe, dataset, batch_size=3)
    for name, key in (("depth", "abs_rel"), ("normal", "mean_angle"), ("segmentation", "pixel_accuracy")):
        for part in ("understanding", "conditioning"):
            assert other[part][name][key] == pytest.approx(report[part][name][key], rel=1e-2)
    assert other["generation"]["category_accuracy"] == report["generation"]["category_accuracy"]


def test_understanding_is_the_pipeline_given_rgb_and_no_label(pipe, dataset, report):
    samples = list(EvaluationSamples(dataset, "test", pipe.modalities, 64))
    expected, shuffled = DepthMetrics("disparity", depth_range(0.001)), DepthMetrics("disparity", depth_range(0.001))
    predictions = []
    for index, sample in enumerate(samples):
        generator = sample_generators(0, "understanding", [index])
        images = {"rgb": sample.maps["rgb"]}
        predictions += list(pipe(conditions=images, num_inference_steps=2, generator=generator, output_type="np").depth)
    for index, sample in enumerate(samples):
        expected.update(predictions[index], sample.maps["depth"])
        shuffled.update(predictions[index - 1], sample.maps["depth"])
    right = report["understanding"]["depth"]["abs_rel"]
    wrong = report["controls"]["shuffled_understanding"]["depth"]["abs_rel"]
    assert right == pytest.approx(expected.compute()["abs_rel"], rel=1e-3)
    assert wrong == pytest.approx(shuffled.compute()["abs_rel"], rel=1e-3)


def test_a_missing_modality_is_measured_where_it_is(pipe, make_dataset):
    def edit(rows):
        del rows[0]["depth"], rows[1]["rgb"], rows[2]["segmentation"]
        del rows[3]["category"]

    dataset = make_dataset(4, 32, "test", edit, segmentation_classes=list(SEGMENTATION_CLASSES))
    report = measure(pipe, dataset)
    assert report["understanding"]["depth"]["num_images"] == 2  # one has no depth, one no RGB to see
    assert report["understanding"]["segmentation"]["num_images"] == 2
    assert report["conditioning"]["depth"]["num_images"] == 3
    assert report["controls"]["vae_only"]["normal"]["num_images"] == 4


def test_classes_that_are_not_the_models_are_not_compared(pipe, make_dataset):
    report = measure(pipe, make_dataset(2, 32, "test"), num_samples=1)  # its torus is label 5, the model's cone
    assert report["understanding"].keys() == {"depth", "normal"}
    assert report["generation"]["category_accuracy"] is None
    assert any("classes are not the model's" in note for note in report["settings"]["notes"])


def test_one_sample_has_no_shuffled_control(pipe, dataset):
    report = measure(pipe, dataset, num_samples=1, num_inference_steps=1)
    assert report["controls"]["shuffled_understanding"]["depth"]["abs_rel"] is None
    assert report["controls"]["shuffled_consistency"]["depth_normal_angle"] is None


def test_a_teacher_gives_the_frechet_distance(pipe, dataset, tmp_path):
    torch.manual_seed(0)
    teacher = SceneTeacher(num_categories=2, num_labels=12, hidden_size=20, depth=1, num_heads=2)
    report = measure(pipe, dataset, teacher=teacher.eval())
    assert report["generation"]["frechet_distance"] > 0
    assert report["controls"]["vae_only"]["frechet_distance"] > 0
    assert 0 <= report["generation"]["classifier_accuracy"] <= 1
    assert report["settings"]["teacher"] == "scene_teacher"
    assert report["settings"]["notes"] == []

    # A model's folder may hold its teacher.
    pipe.save_pretrained(tmp_path / "model")
    teacher.save_pretrained(tmp_path / "model" / "teacher")
    by_folder = measure(str(tmp_path / "model"), dataset)
    assert by_folder["generation"]["frechet_distance"] == report["generation"]["frechet_distance"]
    assert by_folder["settings"]["model"] == str(tmp_path / "model")


def matched(drawn: list[int], left: list[int]) -> list[int]:
    """The next of the same category for each, which is the number's parity, and where there is none any other."""
    chosen: list[int] = []
    for number in drawn:
        alike = [i for i in left if i not in chosen and i % 2 == number % 2]
        chosen += alike[:1]
    return chosen + [i for i in left if i not in chosen][: len(drawn) - len(chosen)]


def test_as_many_other_real_images_are_the_floor_of_the_frechet_distance(pipe, make_dataset):
    """Numpy's covariance and scipy's root of the product, on the network's own features of the images that were not drawn."""
    data = make_dataset(7, 32, "test", segmentation_classes=list(SEGMENTATION_CLASSES))
    torch.manual_seed(0)
    teacher = SceneTeacher(num_categories=2, num_labels=12, hidden_size=20, depth=1, num_heads=2).eval()
    report = measure(pipe, data, num_samples=3, teacher=teacher, tasks=["generation"], num_inference_steps=1)
    order = np.random.default_rng(0).permutation(7).tolist()
    whole = EvaluationSamples(data, "test", pipe.modalities, pipe.native_shape)
    ids = {sample.id: sample.maps["rgb"] for sample in whole}
    names = sorted(ids)
    with torch.no_grad():
        real, others = (
            teacher.pooled(torch.from_numpy(np.stack([ids[names[i]] for i in part])).permute(0, 3, 1, 2) / 127.5 - 1)
            for part in (order[:3], matched(order[:3], order[3:]))
        )
    first, second = (np.cov(x.double().numpy(), rowvar=False) for x in (real, others))
    root = np.trace(sqrtm(first @ second)).real
    gap = ((real.double().mean(0) - others.double().mean(0)) ** 2).sum().item()
    expected = gap + np.trace(first) + np.trace(second) - 2 * root
    found = report["controls"]["other_samples"]
    assert found["num_images"] == 3
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-3)
    assert measure(pipe, data, num_samples=4, teacher=teacher, tasks=["generation"], num_inference_steps=1)["controls"][
        "other_samples"
    ] == {"frechet_distance": None, "num_images": 0}  # fewer are left than were drawn


def test_internal_guidance_is_that_of_all_but_understanding(make_dataset):
    pipe = MultimodalDiTPipeline.from_pretrained("scenes64")
    data = make_dataset(2, 64, "test", segmentation_classes=list(SEGMENTATION_CLASSES))
    plain, led = (measure(pipe, data, teacher=None, internal_guidance_scale=scale) for scale in (1.0, 1.5))
    assert led["settings"]["internal_guidance_scale"] == 1.5
    assert "internal_guidance_scale" not in plain["settings"]
    assert led["understanding"] == plain["understanding"]
    for part in ("conditioning", "generation"):
        assert led[part] != plain[part]
    own, named = (measure(pipe, data, teacher=None, **given) for given in ({}, {"guidance_scale": 1.0}))
    assert own["settings"]["internal_guidance_scale"] == 1.8  # the bundled model's own
    assert named["generation"] == plain["generation"]


def test_some_tasks_alone(pipe, dataset, report):
    alone = measure(pipe, dataset, tasks=["understanding"])
    assert alone["understanding"] == report["understanding"]
    assert alone["controls"]["shuffled_understanding"] == report["controls"]["shuffled_understanding"]
    assert alone["controls"]["vae_only"] == report["controls"]["vae_only"]
    assert alone["generation"]["category_accuracy"] is None
    assert alone["conditioning"]["depth"]["abs_rel"] is None
    assert alone["timing"]["seconds_per_image"]["generation"] is None
    generated = measure(pipe, dataset, tasks=["generation"])
    assert generated["generation"] == report["generation"]
    assert generated["understanding"]["depth"]["abs_rel"] is None


def _encoded(pipe, depth):
    samples = read_conditions({"depth": depth}, pipe.codecs)
    return encode_conditions(samples, pipe.codecs, 8, 8, False).images["depth"][0]


def test_depth_of_less_than_a_metre_is_not_taken_for_relative(pipe):
    depth = np.random.default_rng(0).uniform(0.2, 0.9, (8, 8)).astype(np.float32)
    codec = pipe.codecs["depth"]
    given = _encoded(pipe, [codec.as_given(depth)])
    np.testing.assert_array_equal(given, codec.encode(depth))
    relative = _encoded(pipe, depth)
    np.testing.assert_array_equal(relative, codec.encode(depth, relative=True))


def test_json_safe():
    report = {"a": math.nan, "b": [np.float64(1.5), math.inf, np.int64(3)], 4: {"c": "text", "d": None, "e": True}}
    assert json_safe(report) == {"a": None, "b": [1.5, None, 3], "4": {"c": "text", "d": None, "e": True}}


def test_bad_arguments_are_refused(pipe, dataset, tmp_path):
    for arguments, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"split": "nowhere"}, "splits in .*: test"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"teacher": "no_such_network"}, "neither a folder nor a timm model"),
        ({"tasks": ["generating"]}, "unknown task 'generating'"),
        ({"tasks": []}, "no task is given"),
        ({"internal_guidance_scale": 1.5}, "this model has no head on a middle block"),
        ({"internal_guidance_scale": 1.5, "tasks": ["understanding"]}, "this model has no head on a middle block"),
    ):
        with pytest.raises(UserError, match=message):
            measure(pipe, dataset, **arguments)
    with pytest.raises(UserError, match=r"dataset\.json"):
        measure(pipe, tmp_path / "nowhere")
