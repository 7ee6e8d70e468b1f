"""The multimodal diffusion transformer.

Shapes: B batch, M modalities, C latent channels, H W latent size, T = (H / p)(W / p) tokens, D width.
MMGen's network (arXiv 2503.20644) is exactly representable with the default arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from mmdit.conditioning import Conditioning
from mmdit.models.adapters import AdaptersMixin
from mmdit.models.alignment import PROJECTORS, AlignmentProjector, ConvolutionProjector
from mmdit.models.blocks import BLOCKS, Block, unadded_sums
from mmdit.models.checks import check_config
from mmdit.models.conditioners import make_conditioner
from mmdit.models.embeddings import POSITION_EMBEDDINGS, TIMESTEP_EMBEDDINGS, RoleEmbedding
from mmdit.models.hooks import HooksMixin
from mmdit.models.layers import Rope, reset_linears
from mmdit.models.patch import MultimodalHead, MultimodalPatchEmbed
from mmdit.models.routing import Route


@dataclass
class MultimodalDiTOutput(BaseOutput):
    """Output of ``MultimodalDiT``.

    Args:
        sample: (B, M, C, H, W), the velocity or the clean latent, as ``config.prediction`` says.
        alignment: (B, T, alignment_dim), projected tokens of block ``alignment_depth``, where they were asked for.
        attention: (N, B, T, L), how much each token attends to each of the prompt's L in N blocks, mean over heads, where
            it was asked for and the prompt has tokens.
        internal_sample: (B, M, C, H, W), what the head behind block ``internal_guidance_depth`` predicts, where it was asked for.
    """

    sample: Tensor
    alignment: Tensor | None = None
    attention: Tensor | None = None
    internal_sample: Tensor | None = None


class MultimodalDiT(HooksMixin, ModelMixin, ConfigMixin, CacheMixin, AdaptersMixin):
    """Diffusion transformer over multimodal patches: all modalities of a location are one token.

    Args:
        modalities: names, in the order of dimension M.
        sample_size: latent height and width that positions are scaled to; other sizes work at inference.
        sample_shape: (height, width) of the latents that it is trained on, where they are not square; ``sample_size`` is
            then the longer side. None = sample_size x sample_size.
        in_channels: latent channels C per modality.
        patch_size: p; the latent height and width must be multiples of it.
        hidden_size, depth, num_heads, mlp_ratio: the backbone; see ``models.config.SIZES``.
        num_classes: K; the null class is one more embedding.
        class_dropout_prob: share of prompts (of whatever kind) that training drops, for classifier-free guidance.
        qk_norm: None or "rms_norm".
        position_embedding: "sincos" (fixed, added) or "rope" (rotary, in attention).
        time_embedding: "fused" (one MLP over the timesteps of all modalities, MMGen's) or "sum" (one MLP for each, summed;
            with one modality it is DiT's, SiT's and REPA's).
        prediction: what ``sample`` of the output is: "velocity" (noise - data) or "sample" (the clean latent).
        alignment_depth: number of blocks before the alignment tap, None = no projector.
        alignment_dim, alignment_hidden_size: width of the teacher's features and of the projector.
        alignment_projector: name in ``models.alignment.PROJECTORS``: "mlp" (REPA) or "conv" (iREPA).
        block: name in ``models.blocks.BLOCKS``: "dit", or "cross" and "joint", which also attend to the prompt's tokens.
        conditioner: name in ``models.conditioners.CONDITIONERS``: what kind of prompt the model takes.
        conditioner_settings: further arguments of the conditioner, by name.
        internal_guidance_depth: number of blocks before a second head, which predicts the same as the last one, for internal
            guidance (arXiv 2512.24176); None = no such head.
        second_time: whether ``forward`` takes ``timesteps_next``, as a network that jumps from one time to another needs.

    Raises:
        UserError: an unknown name, sizes that don't divide, or a tap outside the depth.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: list[str]  # what diffusers keeps on one device, and compiles once
    _repeated_blocks: list[str]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["patch_embed", "time_embed", "modulation", "norm"]

    @register_to_config
    def __init__(
        self,
        modalities: Sequence[str] = ("rgb", "depth", "normal", "segmentation"),
        sample_size: int = 32,
        in_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        qk_norm: str | None = None,
        position_embedding: str = "sincos",
        prediction: str = "velocity",
        alignment_depth: int | None = None,
        alignment_dim: int = 768,
        alignment_hidden_size: int = 2048,
        block: str = "dit",
        time_embedding: str = "fused",
        conditioner: str = "class",
        conditioner_settings: dict[str, Any] = {},  # noqa: B006 - never changed, and its type is what a folder's is checked by
        second_time: bool = False,
        sample_shape: list[int] | None = None,
        alignment_projector: str = "mlp",
        internal_guidance_depth: int | None = None,
    ) -> None:
        super().__init__()
        check_config(self.config)
        num_modalities = len(modalities)
        self.gradient_checkpointing = False
        self.patch_embed = MultimodalPatchEmbed(num_modalities, in_channels, patch_size, hidden_size)
        self.position_embed = POSITION_EMBEDDINGS[position_embedding](hidden_size, num_heads, sample_size // patch_size)
        self.time_embed = TIMESTEP_EMBEDDINGS[time_embedding](num_modalities, hidden_size)
        self.role_embed = RoleEmbedding(num_modalities, hidden_size)
        self.conditioner = make_conditioner(
            conditioner, num_classes, hidden_size, class_dropout_prob, conditioner_settings
        )
        self.blocks = nn.ModuleList(BLOCKS[block](hidden_size, num_heads, mlp_ratio, qk_norm) for _ in range(depth))
        self.head = MultimodalHead(num_modalities, in_channels, patch_size, hidden_size)
        self.projector: AlignmentProjector | ConvolutionProjector | None = None
        if alignment_depth is not None:
            self.projector = PROJECTORS[alignment_projector](hidden_size, alignment_hidden_size, alignment_dim)
        self.internal_head: MultimodalHead | None = None
        if internal_guidance_depth is not None:
            self.internal_head = MultimodalHead(num_modalities, in_channels, patch_size, hidden_size)
        self.next_time_embed = None
        if second_time:
            self.next_time_embed = TIMESTEP_EMBEDDINGS[time_embedding](num_modalities, hidden_size)
        self._no_split_modules = self._repeated_blocks = [type(self.blocks[0]).__name__] if depth else []
        self.initialize_weights()

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(height, width) of the latents that it is trained on."""
        height, width = self.config.sample_shape or (self.config.sample_size,) * 2
        return int(height), int(width)

    def __getattr__(self, name: str) -> Any:
        """Return submodules before keys of the config: ``conditioner`` is both, and diffusers looks for the key first."""
        modules = self.__dict__.get("_modules", {})
        return modules[name] if name in modules else super().__getattr__(name)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        roles: Tensor,
        conditioning: Conditioning,
        output_alignment: bool = False,
        return_dict: bool = True,
        timesteps_next: Tensor | None = None,
        output_attention: Collection[int] = (),
        output_internal: bool = False,
        route: Route | None = None,
    ) -> MultimodalDiTOutput | tuple[Tensor | None, ...]:
        """Predict the velocity (or the clean latent) of every modality.

        Args:
            latents: (B, M, C, H, W), each modality as noisy as its timestep says.
            timesteps: (B, M) in [0, 1]; 0 is data, 1 is noise.
            roles: (B, M), values of ``Role``.
            conditioning: vector (B, D) or (1, D). Tokens are for blocks that attend to them; the block "dit" reads none.
            output_alignment: also return the projected tokens of the tap.
            timesteps_next: (B, M), the time that the output leads to, for a model with ``second_time``; None, or ``timesteps``
                themselves = the output depends on ``timesteps`` alone, as without ``second_time``.
            output_attention: numbers of the blocks (1 = the first) whose attention to the prompt's tokens is returned too.
            output_internal: also return what the head on the middle block predicts, third where ``return_dict`` is False.
            route: of tokens that skip a span of blocks, in training; None = all go through all. Inside of the span the tap's
                ``alignment`` is of the K tokens that go through, (B, K, alignment_dim).

        Raises:
            ValueError: shapes that don't fit the config, or attention or a prediction asked for of blocks that have none.
        """
        self._check_asked(output_attention, output_internal, route)
        grid = self._token_grid(latents, timesteps, roles, timesteps_next)
        x = self.patch_embed(latents)  # (B, T, D)
        x, rope = self.position_embed(x, grid)
        c = self.time_embed(timesteps) + self.role_embed(roles) + conditioning.vector  # (B, D)
        if self.next_time_embed is not None and timesteps_next is not None:
            # A difference: a step to the time that it is at is no step, exactly, and the same as no second time.
            c = c + (self.next_time_embed(timesteps_next) - self.next_time_embed(timesteps))

        middle = self.config.internal_guidance_depth if output_internal else None
        tapped = self.config.alignment_depth if output_alignment and self.projector is not None else None
        x, behind, maps = self._through_blocks(x, c, rope, conditioning, {tapped, middle}, output_attention, route)

        sample = self.head(x, c, grid)  # (B, M, C, H, W)
        alignment, internal = None, None
        if self.projector is not None and tapped is not None:
            alignment = self.projector(behind[tapped], grid)  # (B, T, alignment_dim)
        if self.internal_head is not None and middle is not None:
            internal = self.internal_head(behind[middle], c, grid)  # (B, M, C, H, W)
        if not return_dict:
            return (sample, alignment, internal) if output_internal else (sample, alignment)
        return MultimodalDiTOutput(sample, alignment, torch.stack(maps) if maps else None, internal)

    def _through_blocks(
        self,
        x: Tensor,
        c: Tensor,
        rope: Rope | None,
        conditioning: Conditioning,
        read: set[int | None],
        mapped: Collection[int],
        route: Route | None,
    ) -> tuple[Tensor, dict[int, Tensor], list[Tensor]]:
        """Tokens (B, T, D) behind the last block and, by number, behind those in ``read``; attention of those ``mapped``."""
        # The output of these is a ``Residual``.
        unadded = self._unadded(x, {*read, *(number - 1 for number in mapped), *_ends(route)})
        behind: dict[int, Tensor] = {}
        maps = []
        everywhere, all_tokens = rope, x
        for index, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            if route is not None and index == route.first:
                all_tokens, x, rope = x, route.leave(x), route.of_rope(rope)  # (B, K, D)
            if index in mapped and conditioning.tokens is not None:
                maps.append(self._run(block.attention_map, x, c, rope, conditioning))  # (B, T, L)
            layer = partial(block, add=False) if index in unadded else block
            x = self._run(layer, x, c, rope, conditioning)
            if route is not None and index == route.last:
                x, rope = route.come_back(all_tokens, x), everywhere  # (B, T, D)
            if index in read:
                behind[index] = x
        return x, behind, maps

    def _unadded(self, x: Tensor, read: set[int | None]) -> set[int]:
        """Numbers of the blocks that leave their last sum to the next one, which does it with its norm.

        ``read``: blocks whose output is wanted as it is. With checkpointing a sum that is left is two tensors to keep, not one.
        """
        if self.gradient_checkpointing or self.is_cache_enabled:
            return set()
        return unadded_sums(self.blocks, x) - read

    def _run(self, block: Callable[..., Tensor], *args: object) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _check_asked(self, numbers: Collection[int], internal: bool, route: Route | None) -> None:
        if internal and self.internal_head is None:
            raise ValueError("output_internal is asked of a model without such a head: set internal_guidance_depth")
        if route is not None and any(route.first <= number <= route.last for number in numbers):
            raise ValueError(f"output_attention is {list(numbers)}: tokens skip blocks {route.first} to {route.last}")
        if not numbers:
            return
        depth = len(self.blocks)
        if not BLOCKS[self.config.block].attends_to_prompt:
            raise ValueError(f"block {self.config.block!r} attends to no prompt: output_attention needs another block")
        if not all(1 <= number <= depth for number in numbers):
            raise ValueError(f"output_attention is {list(numbers)}: give numbers of blocks from 1 to {depth}")

    def _token_grid(
        self, latents: Tensor, timesteps: Tensor, roles: Tensor, timesteps_next: Tensor | None
    ) -> tuple[int, int]:
        expected_axes = (len(self.config.modalities), self.config.in_channels)
        if latents.ndim != 5 or tuple(latents.shape[1:3]) != expected_axes:
            expected = f"(B, {len(self.config.modalities)}, {self.config.in_channels}, H, W)"
            raise ValueError(f"latents are {tuple(latents.shape)}: this model takes {expected}")
        b, m, _, h, w = latents.shape
        p = self.config.patch_size
        if h % p or w % p:
            raise ValueError(f"latent size {h} x {w} is not a multiple of the patch size {p}")
        if timesteps.shape != (b, m) or roles.shape != (b, m):
            got = f"{tuple(timesteps.shape)} and {tuple(roles.shape)}"
            raise ValueError(f"timesteps and roles are {got}: both must be (B, M) = ({b}, {m})")
        if timesteps_next is not None and self.next_time_embed is None:
            raise ValueError("timesteps_next is given to a model of one time: build it with second_time=True")
        if timesteps_next is not None and timesteps_next.shape != (b, m):
            raise ValueError(f"timesteps_next is {tuple(timesteps_next.shape)}: must be (B, M) = ({b}, {m})")
        return h // p, w // p

    def initialize_weights(self) -> None:
        """adaLN-zero initialisation of DiT: every part draws its own weights (``reset_parameters``).

        The order of the draws is part of a recipe: a seed gives the same weights in every version.
        """
        self.patch_embed.reset_parameters()
        reset_linears(self.time_embed)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.reset_parameters()
        self.head.reset_parameters()
        if self.projector is not None:
            self.projector.reset_parameters()
        self.conditioner.reset_parameters()
        self.role_embed.reset_parameters()
        self.time_embed.reset_parameters()
        if self.next_time_embed is not None:
            reset_linears(self.next_time_embed)
            self.next_time_embed.reset_parameters()
            self.next_time_embed.start_at_zero()
        if self.internal_head is not None:
            self.internal_head.reset_parameters()


def _ends(route: Route | None) -> tuple[int, ...]:
    """Numbers of the blocks whose output a route reads: before its span, and the last of it."""
    return () if route is None else (route.first - 1, route.last)
