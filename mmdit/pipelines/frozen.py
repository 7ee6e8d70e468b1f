"""The frozen networks beside the transformer, for whoever measures a pipeline: its VAE alone, and a feature network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import load_teacher
from mmdit.pipelines.loading import resolve_model
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.digests import digest_tensors

TEACHER_FOLDER = "teacher"


def native_size(pipe: MultimodalDiTPipeline) -> int:
    """Height and width in pixels that the transformer was built for."""
    return pipe.native_size


def weights_digest(pipe: MultimodalDiTPipeline) -> str:
    """16 hexadecimal digits that change with any weight of the transformer or the VAE, or with their dtype."""
    return digest_tensors(pipe.transformer.state_dict(), pipe.vae.state_dict(), described=True)


@torch.no_grad()
def reconstruct(pipe: MultimodalDiTPipeline, images: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Encode and decode with the VAE alone: what no diffusion at all leaves of the data.

    Args:
        images: modality -> encoded images (B, 3, H, W) in [-1, 1].

    Returns modality -> raw values as the pipeline returns them: rgb uint8 (B, H, W, 3), depth (B, H, W) relative, ...
    """
    codec = LatentCodec(pipe.vae, pipe.modalities, device=pipe._execution_device)
    reconstructed = {}
    for name, batch in images.items():
        latents = codec.latents(codec.moments(batch).float(), name)
        reconstructed[name] = pipe.codecs[name].decode(codec.decode(latents, name))
    return reconstructed


def find_teacher(pipe: MultimodalDiTPipeline, name_or_folder: str | None = None) -> nn.Module | None:
    """Load a feature network on the pipeline's device.

    Args:
        name_or_folder: what ``mmdit.encoders.features.load_teacher`` takes; None = the folder ``teacher`` in the model's
            own folder, if it has one.

    Returns None where nothing was named and the model has none. Raises UserError for a teacher that can't be loaded.
    """
    if name_or_folder is None:
        source = getattr(pipe.config, "_name_or_path", None) or pipe.name_or_path
        folder = resolve_model(source) if source else None
        if not isinstance(folder, Path) or not (folder / TEACHER_FOLDER / "config.json").is_file():
            return None
        name_or_folder = str(folder / TEACHER_FOLDER)
    side = pipe.transformer.config.sample_size // pipe.transformer.config.patch_size
    return load_teacher(name_or_folder, (side, side)).to(pipe._execution_device)
