"""Fused operators of a diffusion transformer, forward and backward: Triton kernels, with PyTorch beside them.

Imports without triton: the kernels are loaded on the first call that runs on them.
"""

from __future__ import annotations

from mmdit_kernels.adaln.op import gated_residual_layernorm_modulate, layernorm_modulate
from mmdit_kernels.attention.op import attention, attention_packed
from mmdit_kernels.dispatch import status

__all__ = ["attention", "attention_packed", "gated_residual_layernorm_modulate", "layernorm_modulate", "status"]
