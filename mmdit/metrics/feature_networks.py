"""The frozen networks behind generation metrics: Inception as the field's evaluators have it, and DINOv2 for FD-DINOv2.

Both take uint8 images and resize them as their reference does: numbers change with the resizing more than with most models.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmdit.encoders.features import load_teacher
from mmdit.encoders.timm_folder import CONFIG_NAME, WEIGHTS_NAME, load_timm_folder
from mmdit.errors import UserError, first_line
from mmdit.pipelines.loading import resolve_model
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.digests import digest_tensors
from mmdit.storage.weights import check_archive, refuse_integers, refuse_irregular, refuse_non_finite

# TensorFlow's Inception of 2015-12-05, converted by torch-fidelity; the end of the name is the start of the SHA-256.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
DINOV2 = "vit_large_patch14_dinov2.lvd142m"
DINOV2_SIZE = 224
SPATIAL_CHANNELS = 7
TEACHER_FOLDER = "teacher"


class InceptionFeatures(nn.Module):
    """torch-fidelity's Inception v3, with the features of ADM's evaluator (arXiv 2105.05233).

    Args:
        weights: the state dict, .pth or .safetensors; None = fetched once into PyTorch's hub folder.

    Raises:
        UserError: torch-fidelity is missing, or weights that can't be had, are damaged, or are another network's.
    """

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError("Inception needs torch-fidelity: pip install 'multimodal-dit[metrics]'") from error
        path = _download_inception() if weights is None else weights
        state = load_state_dict(path)
        # Its constructor unpickles what it is given: it is given tensors that were read without running any code.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], buffer)
        except RuntimeError as error:
            reason = first_line(error)
            raise UserError(f"{path}: not the weights of torch-fidelity's Inception v3 ({reason})") from error
        refuse_integers(state, self.network, path)
        refuse_non_finite(self.network, path)
        self.name = f"inception-v3-compat, sha256 {digest_tensors(state)}"
        self._spatial: Tensor | None = None
        # "mixed_6/conv" of the TensorFlow graph: the 1 x 1 branch of the fourth block of 17 x 17, after its ReLU.
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._spatial = output

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images uint8 (B, 3, H, W) -> float32 features.

        pool (B, 2048); spatial (B, 2023): 17 x 17 positions of 7 channels, channels last; logits (B, 1008), without bias.
        """
        pool, logits = self.network(images)
        assert self._spatial is not None
        spatial = self._spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return {"pool": pool, "spatial": spatial.float(), "logits": logits}


class DinoFeatures(nn.Module):
    """The class token of a timm DINOv2 at 224 x 224, as FD-DINOv2 uses it (Stein et al., arXiv 2306.04675).

    Args:
        name_or_folder: a timm model, whose weights are fetched from the Hub, or a folder with its config.json and
            model.safetensors.

    Raises:
        UserError: an unknown model, an incomplete folder, or weights that can't be fetched.
    """

    def __init__(self, name_or_folder: str = DINOV2) -> None:
        super().__init__()
        folder = Path(name_or_folder)
        if folder.is_dir():
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                if not (folder / name).is_file():
                    raise UserError(f"{folder}: a feature network's folder needs {CONFIG_NAME} and {WEIGHTS_NAME}")
            model: Any = load_timm_folder(folder, lambda patch: DINOV2_SIZE)
        elif timm.is_model(name_or_folder.split(".")[0]):
            try:
                model = timm.create_model(name_or_folder, pretrained=True, num_classes=0, img_size=DINOV2_SIZE)
            except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
                raise UserError(f"feature network {name_or_folder!r} can't be loaded: {first_line(error)}") from error
            refuse_non_finite(model, f"feature network {name_or_folder!r}")
        else:
            raise UserError(f"feature network {name_or_folder!r} is neither a folder nor a timm model such as {DINOV2}")
        self.model = model.eval().requires_grad_(False)
        self.name = f"{folder.name if folder.is_dir() else name_or_folder}, sha256 {digest_tensors(model.state_dict())}"
        config = model.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def forward(self, images: np.ndarray) -> Tensor:
        """Images uint8 (B, H, W, 3), resized by Pillow's bicubic filter -> class tokens (B, D), float32."""
        size = (DINOV2_SIZE, DINOV2_SIZE)
        resized = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
        batch = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(self.mean.device)
        return self.model((batch.float() / 255 - self.mean) / self.std).float()


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors of a .safetensors or a .pth file; no code in the file is run.

    Raises:
        UserError: no such file, a damaged one, or one that holds anything but tensors by name.
    """
    refuse_irregular(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            check_archive(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can fail in any way
        raise UserError(f"{path}: not readable as weights without running code ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no dictionary of tensors")
    return dict(state)


def _download_inception() -> Path:
    name = INCEPTION_URL.rsplit("/", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    os.makedirs(path.parent, exist_ok=True)
    try:
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=path.stem.rsplit("-", 1)[1])
    except Exception as error:  # the network raises its own kinds
        raise UserError(
            f"Inception's weights can't be fetched ({error}): fetch {INCEPTION_URL} elsewhere and give the file"
        ) from error
    return path


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (B, H, W, 3) -> uint8 (B, 3, H, W) on a device."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)


def find_teacher(pipe: MultimodalDiTPipeline, name_or_folder: str | None = None) -> nn.Module | None:
    """Load a pipeline's feature network onto its device.

    Args:
        name_or_folder: what ``mmdit.encoders.features.load_teacher`` takes; None = the folder ``teacher`` in the model's
            own folder, if it has one.

    Returns None where nothing was named and the model has none. Raises UserError for a teacher that can't be loaded.
    """
    if name_or_folder is None:
        source = getattr(pipe.config, "_name_or_path", None) or pipe.name_or_path
        folder = resolve_model(source) if source else None
        if not isinstance(folder, Path) or not (folder / TEACHER_FOLDER / CONFIG_NAME).is_file():
            return None
        name_or_folder = str(folder / TEACHER_FOLDER)
    height, width = (side // pipe.transformer.config.patch_size for side in pipe.transformer.latent_shape)
    return load_teacher(name_or_folder, (height, width)).to(pipe.execution_device)
