"""Distances between the images of one map, and how well they keep to it, against numbers worked out apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmdit.metrics.diversity import NOISE, DiversityMeasure, pairwise_angle, pairwise_distance, summary
from mmdit.metrics.maps import map_metrics, sample_generators
from mmdit.metrics.samples import EvaluationSamples
from mmdit.metrics.tasks import TaskRunner
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

SPAN = (0.001, 65.535)


def test_distances_by_hand():
    black, white, half = (np.full((2, 3, 3), value, np.uint8) for value in (0, 255, 51))
    assert pairwise_distance([black, white, half]) == pytest.approx((1 + 0.2 + 0.8) / 3)
    assert pairwise_distance([white, white]) == 0
    assert math.isnan(pairwise_distance([white]))
    assert pairwise_angle([[2, 0], [0, 3], [1, 1]]) == pytest.approx((1 + 2 * (1 - math.sqrt(0.5))) / 3)
    assert math.isnan(pairwise_angle([[1, 0]]))


def test_images_of_each_map(tiny_pipeline_dir, make_dataset):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    samples = list(EvaluationSamples(make_dataset(2), "train", pipe.modalities, 64))

    def measure(batch_size):
        runner = TaskRunner(pipe, 1, seed=5)
        measuring = DiversityMeasure(runner, "depth", 3, batch_size=batch_size, network=None, span=SPAN)
        return measuring.metric, *measuring.of(samples)

    metric, made, controls = measure(2)
    assert metric == "abs_rel"
    assert [len(each.images) for each in made] == [3, 3]
    first = made[0]
    assert 0 < first.distance == pytest.approx(pairwise_distance(first.images))
    assert math.isnan(first.feature_distance)
    for number, image in enumerate(first.images):  # each image apart, with its own noise
        generator = sample_generators(5, f"{NOISE}.0", [number])
        given = [pipe.codecs["depth"].as_given(samples[0].maps["depth"])]
        output = pipe(conditions={"depth": given}, num_inference_steps=1, generator=generator, output_type="np")
        expected = pipe.codecs["rgb"].from_output(output["rgb"])[0]
        assert np.abs(expected.astype(int) - image).max() <= 1
    errors = map_metrics(pipe, SPAN)
    for each in made:
        generators = sample_generators(5, f"{NOISE}.{each.truth.index}.seen", range(3))
        seen = pipe(
            conditions={"rgb": list(each.images)}, num_inference_steps=1, generator=generators, output_type="np"
        )
        for index in range(3):
            errors.update({name: seen[name][index] for name in ("depth", "normal", "segmentation")}, each.truth)
    whole = summary(made, metric)
    assert whole["abs_rel"] == pytest.approx(errors.compute()["depth"]["abs_rel"], rel=1e-3)
    assert whole["distance"] == pytest.approx((made[0].distance + made[1].distance) / 2)
    assert whole["abs_rel_deviation"] == pytest.approx(np.std([error for each in made for error in each.errors]))
    assert controls["real_images"]["distance"] == pytest.approx(pairwise_distance([s.maps["rgb"] for s in samples]))
    assert controls["other_map"]["abs_rel"] != whole["abs_rel"]

    _, again, _ = measure(3)
    assert [each.errors for each in again] == [pytest.approx(each.errors, rel=1e-3) for each in made]
