"""What the network predicts, and the one place where it becomes a velocity: every sampler sees velocity only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmdit.flow.path import PathSample, expand
from mmdit.names import SAMPLE, VELOCITY

# Bounds of 1 / t near the data end, where x_t is all but clean and the division would only amplify error.
MIN_VELOCITY_TIME = 0.03
MIN_LOSS_TIME = 0.1


@dataclass(frozen=True)
class Prediction:
    """A parametrisation of the network's output.

    Args:
        to_velocity: (output, x_t, timesteps) -> velocity, shapes (B, M, C, H, W), (B, M, C, H, W), (B, M).
        from_velocity: (velocity, x_t, timesteps) -> the output that means it.
        target: (path sample, clean) -> what the output is regressed on.
        weight: timesteps (B, M) -> weight of the squared error (B, M).
    """

    to_velocity: Callable[[Tensor, Tensor, Tensor], Tensor]
    from_velocity: Callable[[Tensor, Tensor, Tensor], Tensor]
    target: Callable[[PathSample, Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]


def _clean_to_velocity(output: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
    """v = (x_t - x̂_0) / t."""
    return (x_t - output) / expand(timesteps, x_t).clamp(min=MIN_VELOCITY_TIME)


PREDICTIONS: dict[str, Prediction] = {
    # SiT, MMGen: |v̂ - v|²
    VELOCITY: Prediction(
        to_velocity=lambda output, x_t, t: output,
        from_velocity=lambda velocity, x_t, t: velocity,
        target=lambda path, clean: path.velocity,
        weight=lambda t: t.new_ones(t.shape),
    ),
    # |x̂_0 - x_0|² / max(t, 0.1): between the flat weight of x_0 and the 1 / t² that equals the velocity loss
    SAMPLE: Prediction(
        to_velocity=_clean_to_velocity,
        from_velocity=lambda velocity, x_t, t: x_t - expand(t, x_t) * velocity,
        target=lambda path, clean: clean,
        weight=lambda t: 1 / t.clamp(min=MIN_LOSS_TIME),
    ),
}
