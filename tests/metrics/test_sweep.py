import math

import numpy as np
import pytest
import scipy.linalg
import torch

from mmdit.errors import UserError
from mmdit.flow.schedulers import make_scheduler
from mmdit.metrics.maps import map_metrics, sample_generators
from mmdit.metrics.samples import EvaluationSamples
from mmdit.metrics.sweep import Row, StepSweep, columns, higher_is_better, sweep_rows
from mmdit.metrics.tasks import TASKS
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

RANGE = (0.001, 65.535)


class Colours:
    """Pooled features of an image: the mean of each channel, and of each channel's square."""

    def pooled(self, images):
        return torch.cat([images.mean(dim=(2, 3)), images.square().mean(dim=(2, 3))], dim=1)


@pytest.fixture(scope="module")
def pipe(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def sweeping(pipe, make_dataset):
    def build(num_samples=5, batch_size=2, condition="depth", guidance_scale=2.0, network=None):
        samples = EvaluationSamples(make_dataset(num_samples), "train", pipe.modalities, 64)
        return StepSweep(
            pipe,
            samples,
            network=network,
            guidance_scale=guidance_scale,
            condition=condition,
            seed=3,
            batch_size=batch_size,
            span=RANGE,
        )

    return build


def measure(sweep, task, scheduler="euler", steps=1):
    return sweep.measure(Row(steps, task, scheduler), make_scheduler(scheduler))


def test_rows_come_cheapest_first():
    rows = sweep_rows(["generation", "understanding"], ["heun", "euler"], [5, 1])
    assert [(row.num_inference_steps, row.task, row.scheduler) for row in rows] == [
        (1, "generation", "euler"),
        (1, "generation", "heun"),
        (1, "understanding", "euler"),
        (1, "understanding", "heun"),
        (5, "generation", "euler"),
        (5, "generation", "heun"),
        (5, "understanding", "euler"),
        (5, "understanding", "heun"),
    ]


@pytest.mark.parametrize(
    ("tasks", "schedulers", "steps", "expected"),
    [
        (["understand"], ["euler"], [1], "unknown task 'understand': did you mean 'understanding'"),
        ([], ["euler"], [1], "no task is given"),
        (TASKS, [], [1], "no scheduler is given"),
        (TASKS, ["euler"], [], "steps are"),
        (TASKS, ["euler"], [5, 0], r"steps are \[5, 0\]"),
    ],
)
def test_bad_rows(tasks, schedulers, steps, expected):
    with pytest.raises(UserError, match=expected):
        sweep_rows(tasks, schedulers, steps)


def test_directions_of_columns():
    better_high = {name for name in columns() if higher_is_better(name)}
    assert {"depth_delta1", "normal_within_11_25", "segmentation_miou", "category_accuracy"} <= better_high
    assert not better_high & {"depth_abs_rel", "normal_mean_angle", "frechet_distance", "depth_normal_angle"}


def test_understanding_is_measured_sample_by_sample(pipe, sweeping):
    sweep = sweeping()
    measured = measure(sweep, "understanding", steps=2)
    metrics = map_metrics(pipe, RANGE)
    for sample in sweep.samples:
        generator = sample_generators(3, "understanding", [sample.index])
        images = {"rgb": [sample.maps["rgb"]]}
        output = pipe(conditions=images, num_inference_steps=2, generator=generator, output_type="np")
        metrics.update({name: output[name][0] for name in ("depth", "normal", "segmentation")}, sample)
    expected = metrics.compute()
    for name, metric in (("depth", "abs_rel"), ("normal", "mean_angle"), ("segmentation", "miou")):
        assert measured[f"{name}_{metric}"] == pytest.approx(expected[name][metric], rel=1e-4)
    assert measured["network_evaluations"] == 2
    assert measured["seconds_per_image"] > 0


def test_the_models_own_scheduler_stays(pipe, sweeping):
    own = pipe.scheduler
    sweep = sweeping(2)
    assert measure(sweep, "understanding", "heun", 3)["network_evaluations"] == 5  # the last of Heun's steps is Euler's
    assert measure(sweep, "generation", "euler", 3)["network_evaluations"] == 6  # with and without the class
    assert pipe.scheduler is own


def test_every_deterministic_sampler_takes_the_same_single_step(sweeping):
    sweep = sweeping(2)
    single = [measure(sweep, "understanding", name)["depth_abs_rel"] for name in ("euler", "heun")]
    assert single[0] == pytest.approx(single[1], rel=1e-5)


@pytest.mark.parametrize("task", ["conditioning", "generation"])
def test_numbers_do_not_depend_on_the_batch_size(sweeping, task):
    first = measure(sweeping(5, 2), task, "euler_maruyama", 2)
    second = measure(sweeping(5, 4), task, "euler_maruyama", 2)
    for name in first.keys() - {"seconds_per_image"}:
        assert first[name] == pytest.approx(second[name], rel=1e-3, nan_ok=True), name


def test_conditioning_measures_the_given_modality_alone(sweeping):
    measured = measure(sweeping(2, condition="normal"), "conditioning")
    assert {name.split("_")[0] for name in measured} == {"normal", "network", "seconds"}
    assert 0 < measured["normal_mean_angle"] < 180
    with pytest.raises(UserError, match="unknown condition of the sweep 'rgb'"):
        sweeping(2, condition="rgb")


def test_frechet_distance_of_generated_images(pipe, sweeping):
    sweep = sweeping(12, batch_size=12, guidance_scale=1.0, network=Colours())
    seen = []
    pooled = sweep.network.pooled
    sweep.network.pooled = lambda images: seen.append(images) or pooled(images)
    measured = measure(sweep, "generation")
    real = np.stack([sample.maps["rgb"] for sample in sweep.samples]).astype(np.float64) / 127.5 - 1
    fake = np.concatenate([batch.permute(0, 2, 3, 1).double().numpy() for batch in seen])
    assert fake.shape == real.shape

    def statistics(images):
        features = np.concatenate([images.mean(axis=(1, 2)), (images**2).mean(axis=(1, 2))], axis=1)
        return features.mean(axis=0), np.cov(features, rowvar=False)

    (m1, s1), (m2, s2) = statistics(real), statistics(fake)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    assert measured["frechet_distance"] == pytest.approx(expected, rel=1e-3)
    assert 0 <= measured["category_accuracy"] <= 1
    assert 0 <= measured["segmentation_agreement"] <= 1


def test_without_a_network_the_distance_is_unknown(sweeping):
    measured = measure(sweeping(2), "generation")
    assert math.isnan(measured["frechet_distance"])
    assert measured["network_evaluations"] == 2
