"""Few steps without a derivative of the network: solution consistency (SoFlow, arXiv 2512.15657)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmdit.errors import UserError
from mmdit.flow.flow_map import FlowMapObjective, Jumps
from mmdit.flow.flow_matching import Network
from mmdit.flow.path import expand

MAX_RATIO = (
    0.4  # steps from ``MIN_JUMP_TIME`` then look no nearer to the data than a clean prediction's 1 / t is bounded
)


class SolutionFlowObjective(FlowMapObjective):
    """A step from t to s must end where a step to s ends that begins a little later, at l = t - r (t - s).

    There, one Euler step of the field away, the network is asked again, without a gradient:

        f(x_t, t, s)  against  f(x_t + (l - t) v, l, s),      f(x, t, s) = x + (s - t) u(x, t, s)

    (SoFlow's solution consistency loss). In terms of the mean velocity the target is r v + (1 - r) u(x_l, l, s), which for
    r = 1 is flow matching, and the weight 1 / r of ``FlowMapObjective`` is SoFlow's 1 / ((t - l) (t - s)). As r -> 0 the gradient
    is MeanFlow's, without its Jacobian-vector product, for one more forward pass of the share of the batch that steps.

    v is the path's own velocity, noise - data, whose mean is the field's. r falls exponentially over the training, as SoFlow's
    does: early targets are nearly those of flow matching, later ones nearly exact. Rounding is divided by r: in half
    precision don't let it fall far.

    Args:
        first_ratio, last_ratio: r at the beginning and at the end of the training.
        settings: as in ``FlowMapObjective``.

    Raises:
        UserError: a ratio that is not above 0 and at most ``MAX_RATIO``.
    """

    def __init__(self, *, first_ratio: float = 0.1, last_ratio: float = 0.002, **settings: Any) -> None:
        super().__init__(**settings)
        for name, value in (("first_ratio", first_ratio), ("last_ratio", last_ratio)):
            if not 0 < value <= MAX_RATIO:
                raise UserError(f"{name} of the objective is {value}: give a number above 0, at most {MAX_RATIO}")
        self.first_ratio, self.last_ratio = first_ratio, last_ratio

    def ratio(self, progress: float) -> float:
        """r when this share of the training is done."""
        return self.first_ratio * (self.last_ratio / self.first_ratio) ** progress

    def jump(self, network: Network, jumps: Jumps) -> tuple[Tensor, float]:
        """r v + (1 - r) u(x_l, l, s), and r."""
        r = self.ratio(jumps.progress)
        later = jumps.t - r * (jumps.t - jumps.s)  # l, (N, M): t where nothing moves
        x_l = jumps.x_t + expand(later - jumps.t, jumps.x_t) * jumps.velocity
        output = network(x_l, later, jumps.roles, jumps.conditioning, timesteps_next=jumps.s).sample
        mean_velocity = self.prediction.to_velocity(output.to(x_l), x_l, later)
        return r * jumps.velocity + (1 - r) * mean_velocity, r
