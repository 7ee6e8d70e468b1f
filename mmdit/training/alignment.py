"""The alignment loss on the batches of training: what the tapped tokens are compared with, and how.

B samples, T tokens, M modalities, C h w latent, p patch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.errors import unknown_name
from mmdit.flow.alignment import DISTANCES, alignment_loss, latent_tokens, spatially_normalized
from mmdit.task import Role
from mmdit.training.config import LATENTS, AlignmentConfig
from mmdit.training.frozen import Batch, FrozenNetworks


@dataclass(frozen=True)
class AlignmentLoss:
    """How tapped tokens are aligned.

    With a teacher's features it is REPA's loss (arXiv 2410.06940, eq. 8). ``of_latents`` follows SRA 2 (arXiv 2601.17830),
    which takes the latents that the VAE has made, stored already, in place of a network's features. Ours are: all modalities
    as targets, each compared apart, those that are ABSENT left out (nothing says what they are); the posterior's mean; and
    that of a token its own patch of the latent.

    Args:
        weight: in the whole loss; 0 = off.
        distance: name in ``mmdit.flow.alignment.DISTANCES``.
        spatial_norm: γ of iREPA's normalisation of the features (arXiv 2512.10794); None = as they are.
        of_latents: align with the clean latents of all modalities, not with features of RGB.
    """

    weight: float = 0.0
    distance: str = "cosine"
    spatial_norm: float | None = None
    of_latents: bool = False

    @classmethod
    def of(cls, config: AlignmentConfig | None) -> AlignmentLoss:
        """What the section alignment says. Raises UserError for an unknown distance."""
        if config is None:
            return cls()
        if config.distance not in DISTANCES:
            raise unknown_name("alignment.distance", config.distance, DISTANCES)
        return cls(config.weight, config.distance, config.spatial_norm, config.teacher == LATENTS)

    def __call__(
        self,
        projected: Tensor,
        batch: Batch,
        *,
        roles: Tensor,
        frozen: FrozenNetworks,
        patch_size: int,
        kept: Tensor | None = None,
        mean_over_processes: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the loss of projected tokens (B, T, D) of samples with ``roles`` (B, M).

        ``kept``: (B, K), the tokens that (B, K, D) are of, where the others skip the tap; None = all.
        """
        if not self.of_latents:
            features = frozen.features(batch, projected.device)  # (B, T, D)
            return alignment_loss(projected, self._target(features, kept), distance=self.distance)
        features = latent_tokens(frozen.codec.latents_all(batch["moments"].float()), patch_size)  # (B, T, M, C p p)
        return alignment_loss(
            projected.unflatten(-1, features.shape[2:]),
            self._target(features, kept),
            distance=self.distance,
            known=roles != Role.ABSENT,
            mean_over_processes=mean_over_processes,
        )

    def _target(self, features: Tensor, kept: Tensor | None) -> Tensor:
        if self.spatial_norm is not None:
            features = spatially_normalized(features, self.spatial_norm)  # over all tokens, whichever are compared
        return features if kept is None else features[torch.arange(len(kept), device=kept.device)[:, None], kept]


NO_ALIGNMENT = AlignmentLoss()


def target_width(num_modalities: int, latent_channels: int, patch_size: int) -> int:
    """Width M C p p of the latents of one token."""
    return num_modalities * latent_channels * patch_size**2
