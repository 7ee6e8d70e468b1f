"""The loss on the head of a middle block (internal guidance, arXiv 2512.24176): that of the objective, on its prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mmdit.models.transformer import MultimodalDiTOutput

T = TypeVar("T")


def once(function: Callable[..., T]) -> Callable[..., T]:
    """The function, called once: what it returned first is returned ever after, whatever it is given."""
    kept: list[T] = []

    def asked(*args: Any, **kwargs: Any) -> T:
        if not kept:
            kept.append(function(*args, **kwargs))
        return kept[0]

    return asked


class InternalPredictions:
    """A network that remembers, for each time an objective calls it, what its middle head predicts.

    The objective then goes over the same batch again, with ``replay`` in place of the network: the same draws and the same
    loss, with no evaluation more. So it holds for every objective that calls the network equally often for equal draws.

    Args:
        network: called as the objective does, with ``output_internal``.
    """

    def __init__(self, network: Callable[..., MultimodalDiTOutput]) -> None:
        self.network = network
        self._kept: list[MultimodalDiTOutput] = []

    def __call__(self, *args: Any, **kwargs: Any) -> MultimodalDiTOutput:
        output = self.network(*args, **kwargs, output_internal=True)
        assert output.internal_sample is not None
        self._kept.append(MultimodalDiTOutput(output.internal_sample))
        return output

    def replay(self, *args: Any, **kwargs: Any) -> MultimodalDiTOutput:
        """What the middle head predicted at the first call that is not replayed yet."""
        return self._kept.pop(0)
