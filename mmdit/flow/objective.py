"""Training objectives by name, ``OBJECTIVES``; ``flow_matching`` has their base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmdit.errors import UserError, unknown_name
from mmdit.flow.flow_matching import FlowDraw, FlowObjective, Network, NetworkOutput, Objective, ObjectiveOutput
from mmdit.flow.mean_flow import MeanFlowObjective
from mmdit.flow.solution_flow import SolutionFlowObjective

__all__ = [
    "OBJECTIVES",
    "FlowDraw",
    "FlowObjective",
    "MeanFlowObjective",
    "Network",
    "NetworkOutput",
    "Objective",
    "ObjectiveOutput",
    "SolutionFlowObjective",
    "make_objective",
]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "flow": FlowObjective,
    "solution_flow": SolutionFlowObjective,
    "mean_flow": MeanFlowObjective,
}


def make_objective(name: str, *, settings: Mapping[str, Any] | None = None, **common: Any) -> Objective:
    """Build an objective from ``OBJECTIVES``.

    Args:
        name: of the objective.
        settings: arguments that are this objective's own.
        common: arguments that all take, those of ``FlowObjective``.

    Raises:
        UserError: an unknown name, or settings that the objective doesn't have.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    try:
        return OBJECTIVES[name](**common, **(settings or {}))
    except TypeError as error:
        raise UserError(f"objective {name!r} does not take the settings {dict(settings or {})}: {error}") from error
