"""Numbers of learning curves against numbers worked out apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmdit.metrics.learning_curves import Curve, Spread, curve_columns, curves_of, more_is_better

ERROR, SHARE = "understanding_depth_abs_rel", "generation_category_accuracy"


def curve(values, *, samples=None, column=ERROR, seed=0, variant="a", last=None):
    samples = samples or [1000 * 2**i for i in range(len(values))]
    rows = [
        {
            "variant": variant,
            "title": variant.upper(),
            "seed": seed,
            "step": count // 10,
            "max_steps": last or samples[-1] // 10,
            "samples": count,
            "processor_seconds": count / 20,
            "wall_seconds": count / 10,
            column: value,
        }
        for count, value in zip(samples, values, strict=True)
    ]
    (found,) = curves_of(rows)
    return found


def test_values_are_linear_over_the_logarithm():
    """An error that falls by a fixed amount with each doubling is met exactly at any budget."""
    found = curve([0.08, 0.06, 0.04, 0.02])
    for budget in (1000, 1500, 3000, 7999, 8000):
        assert found.at(ERROR, budget) == pytest.approx(0.08 - 0.02 * math.log2(budget / 1000))
        assert found.at(ERROR, budget / 20, "processor_seconds") == pytest.approx(found.at(ERROR, budget))
    for outside in (999, 8001):
        assert math.isnan(found.at(ERROR, outside))
    assert found.end(ERROR) == 0.02
    assert math.isnan(found.end(SHARE))


def test_samples_to_a_goal_are_where_the_curve_first_crosses_it():
    found = curve([0.08, 0.05, 0.025, 0.035, 0.01])
    needed = found.reach(ERROR, 0.03)
    assert needed == pytest.approx(2000 * 2 ** ((0.05 - 0.03) / (0.05 - 0.025)))
    assert found.at(ERROR, needed) == pytest.approx(0.03)
    fine = np.geomspace(1000, 16000, 200_001)  # an independent search along the same curve
    values = np.interp(np.log(fine), np.log([1000, 2000, 4000, 8000, 16000]), [0.08, 0.05, 0.025, 0.035, 0.01])
    assert needed == pytest.approx(fine[np.argmax(values <= 0.03)], rel=1e-4)
    assert found.reach(ERROR, 0.03, "wall_seconds") == pytest.approx(needed / 10)
    assert found.reach(ERROR, 0.001) == math.inf
    assert math.isnan(found.reach(SHARE, 0.5))


def test_a_goal_that_the_first_point_has_is_an_upper_bound():
    found = curve([0.02, 0.01])
    assert (found.reach(ERROR, 0.03), found.reached_before(ERROR, 0.03)) == (1000, True)
    assert not found.reached_before(ERROR, 0.015)


def test_more_is_better_where_it_is():
    found = curve([0.2, 0.4, 0.8], column=SHARE)
    assert found.reach(SHARE, 0.6) == pytest.approx(2000 * 2**0.5)
    assert found.reach(SHARE, 0.9) == math.inf
    better = {name for name in curve_columns() if more_is_better(name)}
    assert {SHARE, "understanding_segmentation_object_iou", "conditioning_depth_delta1"} <= better
    assert not better & {ERROR, "generation_frechet_distance", "understanding_normal_mean_angle_objects"}


def test_points_that_could_not_be_measured_are_passed_over():
    found = curve([0.08, math.nan, 0.04])
    assert found.at(ERROR, 2000) == pytest.approx(0.06)
    assert found.reach(ERROR, 0.06) == pytest.approx(2000)


def test_spread_over_seeds():
    values = [0.031, 0.028, 0.034]
    spread = Spread.of([*values, math.nan])
    assert (spread.mean, spread.deviation, spread.count) == (pytest.approx(0.031), pytest.approx(0.003), 3)
    assert math.isnan(Spread.of([0.5]).deviation)
    assert Spread.of([]).count == 0


def test_runs_are_told_apart_and_sorted():
    rows = [
        dict(point)
        for each in (curve([0.5, 0.4], variant="b", seed=1), curve([0.3, 0.2], variant="a"))
        for point in each.points
    ]
    rows += [dict(point) for point in curve([0.6], variant="b", last=500).points]
    found = curves_of(rows[::-1])
    assert [(each.variant, each.title, each.seed, each.finished, len(each.points)) for each in found] == [
        ("b", "B", 0, False, 1),
        ("b", "B", 1, True, 2),
        ("a", "A", 0, True, 2),
    ]
    assert isinstance(found[0], Curve)
    assert [point["samples"] for point in found[1].points] == [1000, 2000]


def test_which_way_prompts_are_better():
    better_high = {name for name in curve_columns() if name.startswith("prompts.") and more_is_better(name)}
    assert {name.rsplit(".", 1)[1] for name in better_high} == {"category", "colour", "present", "relation", "all"}
    assert not more_is_better("prompts.subject.copy_rate")
    assert not more_is_better("prompts.subjects.two.fused")
