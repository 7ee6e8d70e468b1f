"""The distance against that of the metrics and finite differences; moments against those of all samples together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.flow.frechet_loss import Moments, Reference, RunningMoments, frechet_distance
from mmdit.metrics.frechet import FeatureStatistics
from mmdit.metrics.frechet import frechet_distance as measured_distance


def features(seed: int, count: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return (
        torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixed + torch.arange(width) * 0.1 * seed
    )


def test_moments_and_distance_are_those_of_the_metrics() -> None:
    ours, theirs = features(1, 50), features(2, 60)
    statistics = FeatureStatistics()
    statistics.update(ours.numpy())
    np.testing.assert_allclose(Moments.of(ours).mean, statistics.mean)
    np.testing.assert_allclose(Moments.of(ours).covariance * 50 / 49, statistics.covariance)
    first, second = Moments.of(ours), Moments.of(theirs)
    expected = measured_distance(first.mean, first.covariance, second.mean, second.covariance)
    assert float(frechet_distance(first, Reference.of(theirs))) == pytest.approx(expected, rel=1e-9)
    assert float(frechet_distance(first, Reference.of(ours))) == pytest.approx(0, abs=1e-9)


def test_its_gradient_is_that_of_finite_differences() -> None:
    reference = Reference.of(features(2, 60, 4))
    assert torch.autograd.gradcheck(
        lambda values: frechet_distance(Moments.of(values), reference), features(1, 9, 4).requires_grad_(), atol=1e-6
    )


def test_fewer_samples_than_features_leave_it_finite() -> None:
    values = features(1, 3).requires_grad_()
    distance = frechet_distance(Moments.of(values), Reference.of(features(2, 60)))
    distance.backward()
    assert torch.isfinite(distance)
    assert torch.isfinite(values.grad).all()


def test_what_is_not_finite_gives_no_number() -> None:
    values = features(1, 9)
    values[2, 3] = torch.inf
    assert torch.isnan(frechet_distance(Moments.of(values), Reference.of(features(2, 60))))


def test_moments_of_another_network_are_refused() -> None:
    running = RunningMoments(0.9)
    running.add(features(1, 4, 6))
    with pytest.raises(UserError, match="gives 5 features, and that of the checkpoint gave 6"):
        running.add(features(1, 4, 5))


def test_all_samples_weigh_the_same_until_the_window_is_full() -> None:
    batches = [features(seed, 4 + seed) for seed in range(12)]
    running = RunningMoments(decay=0.9)
    for number, batch in enumerate(batches):
        found = running.add(batch)
        seen = torch.cat(batches[: number + 1])
        assert found is not None
        if 1 - len(batch) / len(seen) < 0.9:
            torch.testing.assert_close(found.mean, Moments.of(seen).mean)
            torch.testing.assert_close(found.covariance, Moments.of(seen).covariance)
            before = found
        else:  # then as an exponential average
            own = Moments.of(batch)
            torch.testing.assert_close(found.mean, 0.9 * before.mean + 0.1 * own.mean)
            torch.testing.assert_close(found.second, 0.9 * before.second + 0.1 * own.second)
            before = found
    assert running.count == sum(map(len, batches))
    assert running.add(features(1, 0)) is not None  # a batch without any changes nothing
    torch.testing.assert_close(running.moments.second, before.second)
    assert RunningMoments(0.9).add(features(1, 0)) is None


def test_its_gradient_moves_the_whole_population_as_the_batch() -> None:
    """d mean / d features is that of the batch's mean, however many came before."""
    running = RunningMoments(decay=0.99)
    running.add(features(1, 500))
    batch = features(2, 5).requires_grad_()
    found = running.add(batch)
    weights = torch.arange(6.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found.mean @ weights + found.second.diagonal() @ weights, batch)
    own = batch.detach().requires_grad_()
    (expected,) = torch.autograd.grad(own.mean(0) @ weights + own.square().mean(0) @ weights, own)
    torch.testing.assert_close(gradient, expected)


def test_two_processes_are_one() -> None:
    """Averaged gradients and moments of a batch of 5 and one of 3 are those of all 8."""
    reference, scale = Reference.of(features(3, 40)), torch.ones(6, dtype=torch.float64)
    parts = features(1, 5), features(2, 3)

    def averaged(own: Tensor, other: Tensor) -> Callable[[Tensor], Tensor]:
        """What the two processes reduce, in turn: counts, sums, sums of squares."""
        values: Iterator[Tensor] = iter((other.new_tensor(len(other)), other.sum(0), other.mT @ other))
        return lambda mine: (mine + next(values)) / 2

    def gradient(batch: Tensor, reduce: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Moments]:
        weight = scale.clone().requires_grad_()
        running = RunningMoments(0.9)
        found = running.add(batch * weight, *([] if reduce is None else [reduce]))
        assert found is not None
        assert running.moments is not None
        return torch.autograd.grad(frechet_distance(found, reference), weight)[0], running.moments

    whole, moments = gradient(torch.cat(parts))
    results = [gradient(own, averaged(own, other)) for own, other in (parts, parts[::-1])]
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, whole)
    for _, found in results:
        torch.testing.assert_close(found.mean, moments.mean)
        torch.testing.assert_close(found.second, moments.second)


def test_a_resumed_one_goes_on() -> None:
    first, second = RunningMoments(0.9), RunningMoments(0.9)
    second.load(first.state())
    assert second.moments is None
    for seed in range(3):
        first.add(features(seed, 4))
    second.load(first.state())
    batch = features(5, 4)
    assert torch.equal(first.add(batch).second, second.add(batch).second)
    assert first.count == second.count
