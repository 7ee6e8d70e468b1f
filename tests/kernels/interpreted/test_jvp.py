"""Forward-mode differentiation of the kernels."""

from __future__ import annotations

import pytest
import torch
from mmdit_kernels import attention, gated_residual_layernorm_modulate, layernorm_modulate
from torch.func import jvp


def test_a_tangent_is_never_dropped() -> None:
    q, x, c = torch.randn(1, 1, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 8)
    for function, primal in (
        (lambda q: attention(q, q, q, backend="triton"), q),
        (lambda x: layernorm_modulate(x, c, c, backend="triton"), x),
        (lambda x: gated_residual_layernorm_modulate(x, x, c, c, c, backend="triton"), x),
    ):
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative: use backend='torch'"):
            jvp(function, (primal,), (primal,))
