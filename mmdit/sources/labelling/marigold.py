"""Marigold's diffusers pipelines, run so that a prediction depends on its image and id alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mmdit.errors import UserError
from mmdit.sources.labelling.network import load_diffusers
from mmdit.sources.labelling.settings import MarigoldSettings
from mmdit.sources.labelling.source import ModelSource


def seed_of(sample_id: str) -> int:
    """Return 63 bits that depend on the id alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "big") >> 1


class MarigoldRunner:
    """One pipeline with its settings; the noise of each image comes from a generator that its id seeds."""

    def __init__(
        self, pipeline_class: Any, source: ModelSource, dtype: torch.dtype, settings: MarigoldSettings
    ) -> None:
        self.pipeline = load_diffusers(pipeline_class, source, dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        config = self.pipeline.config
        self.steps = settings.steps if settings.steps is not None else config.default_denoising_steps
        resolution = settings.processing_resolution
        self.resolution = resolution if resolution is not None else config.default_processing_resolution
        self.ensemble_size = settings.ensemble_size
        multiple = self.pipeline.vae_scale_factor
        for option, value, wanted in (
            ("steps", self.steps, self.steps is not None and self.steps >= 1),
            ("ensemble_size", self.ensemble_size, self.ensemble_size >= 1),
            (
                "processing_resolution",
                self.resolution,
                self.resolution is not None and self.resolution >= 0 and self.resolution % multiple == 0,
            ),
        ):
            if not wanted:
                right = f"a multiple of {multiple}, or 0" if option == "processing_resolution" else "at least 1"
                raise UserError(f"--marigold.{option} is {value}: give {right} ({source.name})")

    def to(self, device: torch.device) -> None:
        self.pipeline.to(device)

    def __call__(self, images: Sequence[np.ndarray], ids: Sequence[str]) -> np.ndarray:
        """Images (H, W, 3) uint8 of one size -> predictions (N, H, W, C) float32."""
        generators = []
        for sample_id in ids:
            # One generator per member of an ensemble: a list of them is what the pipeline takes.
            generators += [
                torch.Generator().manual_seed((seed_of(sample_id) + member) % 2**63)
                for member in range(self.ensemble_size)
            ]
        height, width = images[0].shape[:2]
        # Resized here, in float32: the pipeline would do it in the networks' dtype.
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
        if self.resolution:
            processor = self.pipeline.image_processor
            pixels = processor.resize_to_max_edge(pixels, self.resolution, "bilinear").clamp(0, 1)
        output = self.pipeline(
            pixels,
            num_inference_steps=self.steps,
            ensemble_size=self.ensemble_size,
            processing_resolution=0,
            match_input_resolution=False,
            batch_size=len(images) * self.ensemble_size,
            generator=generators,
        )
        predictions = torch.from_numpy(output.prediction).float().permute(0, 3, 1, 2)  # (N, C, h, w)
        predictions = F.interpolate(predictions, (height, width), mode="bilinear", align_corners=False)
        return predictions.permute(0, 2, 3, 1).numpy()

    def facts(self) -> Mapping[str, Any]:
        return {
            "num_inference_steps": self.steps,
            "ensemble_size": self.ensemble_size,
            "processing_resolution": self.resolution,
        }
