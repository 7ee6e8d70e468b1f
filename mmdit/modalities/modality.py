"""What a modality is: a frozen record of how raw values map to three channels, and of its share in the loss.

A new modality is one entry in ``MODALITIES`` and, if none of ``CODECS`` fits, one codec class.
The record is saved in the pipeline's config, so a folder of weights says what its outputs mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Modality:
    """One kind of image that the model generates or reads.

    Args:
        name: key in conditions, outputs, files and datasets.
        codec: name in ``mmdit.modalities.CODECS``: raw array <-> 3 channels in [-1, 1].
        loss_weight: weight of this modality in the velocity loss.
        latents_mean, latents_std: per-channel statistics that whiten this modality's latents, (z - mean) / std;
            None = the VAE's own ``scaling_factor`` and ``shift_factor``.
        settings: the codec's arguments (depth: ``space`` and ``quantiles``; segmentation: ``classes``).
    """

    name: str
    codec: str
    loss_weight: float = 1.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the codec's settings are keys like the others."""
        return {
            "name": self.name,
            "codec": self.codec,
            "loss_weight": self.loss_weight,
            "latents_mean": None if self.latents_mean is None else list(self.latents_mean),
            "latents_std": None if self.latents_std is None else list(self.latents_std),
            **self.settings,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Modality:
        """Invert ``to_dict``; keys that are not fields of the record are the codec's settings."""
        own = {f.name for f in dataclasses.fields(cls)} - {"settings"}
        known: dict[str, Any] = {key: value for key, value in values.items() if key in own}
        for key in ("latents_mean", "latents_std"):
            if known.get(key) is not None:
                known[key] = tuple(float(v) for v in known[key])
        return cls(**known, settings={key: value for key, value in values.items() if key not in own})

    def replace(self, **changes: Any) -> Modality:
        """Return a copy with fields changed; names that are not fields change the codec's settings."""
        return Modality.from_dict({**self.to_dict(), **changes})
