"""What diffusers does to a transformer from outside, made to fit ours: cached blocks, stored dtypes, attention backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmdit.errors import UserError
from mmdit.models.blocks import BLOCKS


class HooksMixin:
    """Base of ``MultimodalDiT``, before diffusers' own, whose methods it narrows."""

    blocks: nn.ModuleList
    dtype: torch.dtype

    def enable_cache(self, config: Any) -> None:
        """Skip the blocks behind the first one while its output hardly changes (``diffusers.FirstBlockCacheConfig``).

        A pipeline says which call of the network is which, and forgets what is cached when its own call ends.

        Raises:
            UserError: another kind of cache, for those look for diffusers' attention layers, or fewer than two blocks.
        """
        from diffusers import FirstBlockCacheConfig

        if not isinstance(config, FirstBlockCacheConfig):
            raise UserError(f"cache config is a {type(config).__name__}: this model takes FirstBlockCacheConfig alone")
        if len(self.blocks) < 2:
            raise UserError(f"a model of {len(self.blocks)} block has nothing to cache: it takes two or more")
        _register_blocks()
        super().enable_cache(config)  # type: ignore[misc]

    def enable_layerwise_casting(
        self, storage_dtype: torch.dtype = torch.float8_e4m3fn, compute_dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        """Keep weights of linear layers in ``storage_dtype``, and compute in ``compute_dtype``, None = the model's own.

        What stays as it is (``_skip_layerwise_casting_patterns``) is cast to ``compute_dtype`` once: all of the network
        computes in one dtype.
        """
        compute_dtype = self.dtype if compute_dtype is None else compute_dtype
        self.to(compute_dtype)  # type: ignore[attr-defined]
        super().enable_layerwise_casting(storage_dtype, compute_dtype, **kwargs)  # type: ignore[misc]

    def set_attention_backend(self, backend: str) -> None:
        """Refuse: diffusers' backends have no effect on this model, whose attention is that of ``mmdit_kernels``.

        Raises:
            UserError: always; it says how the backend is chosen.
        """
        raise UserError(
            f"attention backend {backend!r} has no effect here: attention is mmdit_kernels', whose backend the environment "
            "variable MMDIT_KERNELS chooses: auto, triton or torch"
        )


def _register_blocks() -> None:
    """Tell diffusers' caches about our blocks; not when the module is imported, for it loads all of diffusers' models."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    class BlockMetadata(TransformerBlockMetadata):  # type: ignore[misc]
        """What a block is given first is what it changes; ``Block.forward`` calls it x."""

        def _get_parameter_from_args_kwargs(self, identifier: str, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if args else (kwargs or {})["x"]

    for cls in BLOCKS.values():
        TransformerBlockRegistry.register(cls, BlockMetadata(return_hidden_states_index=0))
