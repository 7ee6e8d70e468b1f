"""Few steps by a derivative of the network along the path: MeanFlow (arXiv 2505.13447)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mmdit.flow.flow_map import FlowMapObjective, Jumps
from mmdit.flow.flow_matching import Network
from mmdit.flow.path import expand


class MeanFlowObjective(FlowMapObjective):
    """The MeanFlow identity: u(x_t, t, s) = v - (t - s) du/dt, with du/dt = v ∂u/∂x + ∂u/∂t along the path (eq. 6).

    du/dt is one Jacobian-vector product, ``torch.func.jvp`` with the tangents (v, 1, 0) of (x, t, s), of the samples that step
    alone and without a gradient; reverse mode goes through u as the whole batch's forward pass gives it. Attention and
    modulation have rules of their own for the product (kernels/README.md, "Forward mode"). Modalities that are given or
    absent don't move: their tangents are 0, in x and in t.
    """

    takes_derivative: ClassVar[bool] = True

    def jump(self, network: Network, jumps: Jumps) -> tuple[Tensor, float]:
        """v - (t - s) du/dt, and 1."""

        def mean_velocity(x: Tensor, t: Tensor) -> Tensor:
            output = network(x, t, jumps.roles, jumps.conditioning, timesteps_next=jumps.s).sample
            return self.prediction.to_velocity(output.to(x), x, t)

        moving = jumps.moving.to(jumps.t)  # (N, M)
        tangents = (expand(moving, jumps.x_t) * jumps.velocity, moving)
        slope = torch.func.jvp(mean_velocity, (jumps.x_t, jumps.t), tangents)[1]
        return jumps.velocity - expand(jumps.t - jumps.s, slope) * slope, 1.0
