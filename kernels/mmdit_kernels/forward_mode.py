"""Forward-mode differentiation: tangents are taken off the arguments of an operator and put onto its results.

torch.library has no forward-mode rule for its operators: they drop tangents without a word. So a public function that
runs on Triton asks here first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd import forward_ad

from mmdit_kernels.dispatch import constant_in_graphs, transforms


@constant_in_graphs
def forward_mode() -> bool:
    """Return whether a level of forward-mode differentiation is open: torch.func.jvp, or forward_ad.dual_level."""
    return forward_ad._current_level >= 0


@constant_in_graphs
def hidden_by() -> str | None:
    """Return the transform of torch.func that may hide tangents from the operators, or None.

    A tangent is seen if the innermost transform is the only jvp; other transforms wrap it.
    """
    names = transforms()
    if names and (names[-1] != "jvp" or names.count("jvp") > 1):
        return names[-1]
    return None


def split(op: str, tensors: Sequence[Tensor | None]) -> tuple[list[Tensor | None], list[Tensor | None]] | None:
    """Return the primals and the tangents (None = zero), or None where no tensor has a tangent.

    Raises NotImplementedError inside jvp of another transform (jvp of jvp, of grad, of vmap).
    """
    if not forward_mode():
        return None
    other = hidden_by()
    if other is not None:
        raise NotImplementedError(
            f"{op} on the Triton backend has no forward-mode derivative through torch.func.{other} inside another "
            "forward-mode level: use backend='torch', or one torch.func.jvp, innermost"
        )
    pairs = [(None, None) if x is None else forward_ad.unpack_dual(x) for x in tensors]
    if all(tangent is None for _, tangent in pairs):
        return None
    return [primal for primal, _ in pairs], [tangent for _, tangent in pairs]


def refuse_tangent_of_gradient(op: str, gradients: Sequence[Tensor | None]) -> None:
    """Raise NotImplementedError where what reverse mode begins with has a tangent, which the backward would drop."""
    if forward_mode() and any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in gradients):
        raise NotImplementedError(
            f"{op} on the Triton backend has no forward-mode derivative of its gradient: use backend='torch'"
        )


def refuse_reverse_mode_of_duals(op: str, gradient: Tensor | None) -> None:
    """Raise NotImplementedError where reverse mode arrives at an operator of duals: at its tangent, or before their level ends.

    While it is open the gradient has a tangent, too, which the backward would drop.
    """
    if forward_mode():
        raise NotImplementedError(
            f"{op} on the Triton backend has no forward-mode derivative of its gradient: differentiate after the forward-mode "
            "level has ended, or use backend='torch'"
        )
    if gradient is not None:
        raise NotImplementedError(
            f"{op} on the Triton backend has no gradient of its tangent, only of its output: detach the tangent "
            "(inside the compiled function, if you use torch.compile), or use backend='torch'"
        )


def refuse_gradient_of_tables(needed: Sequence[bool]) -> None:
    """Raise NotImplementedError where reverse mode asks for gradients of rope tables that the kernels do not have.

    ``attention`` sees that a table needs one, and lets PyTorch rotate; but not where torch.func has wrapped the table.
    """
    if any(needed):
        raise NotImplementedError(
            "attention on the Triton backend has no gradient of rope tables that were computed inside a transform of "
            "torch.func: compute them before it, or use backend='torch'"
        )
