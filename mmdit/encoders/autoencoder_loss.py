"""Training objective of a VAE that all modalities share: each modality is judged as its codec decodes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError
from mmdit.modalities import Codec, build_codecs
from mmdit.modalities.modality import Modality

# (codec, output, images (N, 3, H, W)) -> (N,)
Term = Callable[[Any, Tensor, Tensor], Tensor]

# Object pixels of normals and labels are few and matter most downstream; depth is smooth and easy.
DEFAULT_WEIGHTS = {"rgb": 1.0, "depth": 1.0, "normal": 2.0, "segmentation": 2.0}


class AutoencoderObjective:
    """L1 + edge L1 + KL, with a cosine term for normals and palette cross-entropy for segmentation.

    Args:
        modalities: name -> record, in the order of ``modality_ids``.
        weights: weight per modality name of its reconstruction terms; 1 where not named.
        kl_weight: weight of the KL divergence to N(0, 1), mean over latent values.
        edge_weight: weight of the L1 distance between horizontal and vertical differences.
        cosine_weight: weight of 1 - cos(angle), for codecs whose ``reconstruction_term`` is "cosine" (normals); pixels without a
            normal are left out.
        label_weight: weight of the cross-entropy over ``-temperature |x - colour_k|^2``, codecs whose term is "label"
            (segmentation).
        temperature: sharpness of that cross-entropy.
        latent_noise: most noise added to z before decoding, in units of the batch's per-channel std of z; each image
            draws its share uniformly from [0, latent_noise]. The decoder then forgives the errors of a diffusion model.

    The batch: ``images`` (B, 3, H, W) in [-1, 1], encoded by the modalities' codecs, any mixture of modalities;
    ``modality_ids`` (B,) int64, the row of each image in ``modalities``. A missing modality is simply not in the batch.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        weights: Mapping[str, float] | None = None,
        kl_weight: float = 1e-4,
        edge_weight: float = 1.0,
        cosine_weight: float = 1.0,
        label_weight: float = 0.5,
        temperature: float = 4.0,
        latent_noise: float = 0.2,
    ) -> None:
        weights = DEFAULT_WEIGHTS if weights is None else weights
        for name, weight in weights.items():
            if weight < 0:
                raise UserError(f"weight of modality {name!r} is {weight}: give a number >= 0")
        self.names = list(modalities)
        self.weights = torch.tensor([float(weights.get(name, 1.0)) for name in self.names])
        self.codecs = list(build_codecs(modalities).values())
        self._terms: dict[str, Term] = {"cosine": self._cosine, "label": self._label}
        self.kl_weight, self.edge_weight, self.latent_noise = kl_weight, edge_weight, latent_noise
        self.cosine_weight, self.label_weight, self.temperature = cosine_weight, label_weight, temperature

    def __call__(
        self, codec: LatentCodec, images: Tensor, modality_ids: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return scalar losses: "loss" (to minimise) and its unweighted parts "l1", "edge", "kl", "cosine", "label"."""
        moments = codec.moments(images)
        mean, logvar = moments.float().chunk(2, dim=1)
        output = codec.decode_raw(self.noisy(codec.sample(moments, generator), generator)).float()
        return self.losses(output, images.to(output), modality_ids.to(output.device), mean, logvar)

    def noisy(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Latents z (B, C, h, w), not whitened, with noise on each by the share of ``latent_noise`` that is drawn for it."""
        spread = z.detach().float().std(dim=(0, 2, 3), keepdim=True).to(z)  # (1, C, 1, 1)
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=generator.device).to(z.device)
        share = torch.rand(len(z), 1, 1, 1, generator=generator, device=generator.device).to(z)
        return z + self.latent_noise * share * spread * noise

    def losses(
        self, output: Tensor, images: Tensor, modality_ids: Tensor, mean: Tensor, logvar: Tensor
    ) -> dict[str, Tensor]:
        """Compare reconstructions ``output`` with ``images``, both (B, 3, H, W); ``mean``, ``logvar`` (B, C, h, w)."""
        parts = self.reconstruction(output, images, modality_ids)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return {**parts, "loss": parts["loss"] + self.kl_weight * kl, "kl": kl.detach()}

    def reconstruction(self, output: Tensor, images: Tensor, modality_ids: Tensor) -> dict[str, Tensor]:
        """The losses of ``output`` beside ``images``, both (B, 3, H, W), without the latents' own."""
        weights = self.weights.to(images.device)[modality_ids]  # (B,)
        batch = len(images)
        l1 = (output - images).abs().mean(dim=(1, 2, 3))
        edge = torch.zeros_like(l1)
        for d in (-1, -2):
            edge = edge + (output.diff(dim=d) - images.diff(dim=d)).abs().mean(dim=(1, 2, 3))
        terms = {name: torch.zeros(batch, device=images.device) for name in self._terms}
        counts = dict.fromkeys(self._terms, torch.zeros((), dtype=torch.int64, device=images.device))
        for row, row_codec in enumerate(self.codecs):
            name = row_codec.reconstruction_term
            chosen = (modality_ids == row).nonzero()[:, 0]
            if name is not None and len(chosen):
                values = self._terms[name](row_codec, output[chosen], images[chosen])
                terms[name] = terms[name].index_copy(0, chosen, values)
                counts[name] = counts[name] + len(chosen)
        cosine, label = terms["cosine"], terms["label"]
        per_image = l1 + self.edge_weight * edge + self.cosine_weight * cosine + self.label_weight * label
        parts = {"l1": l1.mean(), "edge": edge.mean(), "cosine": cosine.sum(), "label": label.sum()}
        for name, count in counts.items():
            parts[name] = parts[name] / count.clamp_min(1)
        return {"loss": (weights * per_image).mean(), **{name: value.detach() for name, value in parts.items()}}

    @staticmethod
    def _cosine(codec: Codec, output: Tensor, images: Tensor) -> Tensor:
        """1 - cos, mean over pixels that have a normal, per image: (N, 3, H, W) -> (N,)."""
        valid = (images.norm(dim=1) > 0.5).float()
        distance = 1 - F.cosine_similarity(output, images, dim=1, eps=1e-4)
        return (distance * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp_min(1)

    def _label(self, codec: Any, output: Tensor, images: Tensor) -> Tensor:
        """Cross-entropy over the palette of a codec with ``logits``, per image: (N, 3, H, W) -> (N,)."""
        target = codec.rows(images)
        logits = self.temperature * codec.logits(output)
        return F.cross_entropy(logits, target, reduction="none").mean(dim=(1, 2))


def make_autoencoder_objective(
    modalities: Mapping[str, Modality], settings: Mapping[str, Any], key: str
) -> AutoencoderObjective:
    """The loss with the arguments that ``key`` of a configuration gives. Raises UserError for one that it doesn't take."""
    try:
        return AutoencoderObjective(modalities, **settings)
    except TypeError as error:
        raise UserError(f"{key} is {dict(settings)}: the autoencoder's loss does not take that ({error})") from error
