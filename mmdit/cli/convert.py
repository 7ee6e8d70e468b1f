"""``mmdit convert``: other people's checkpoints -> a pipeline folder.

The checkpoint stays memory-mapped: the new folder is written from its pages, so that a file of 11 GB takes no more memory
than the weights that are converted.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmdit.bounds import PositiveInt
from mmdit.errors import UserError
from mmdit.storage.lock import FolderLock

if TYPE_CHECKING:
    from torch import Tensor

# How MMGen maps raw values to three channels, where that differs from ours.
MMGEN_SETTINGS = {"depth": {"space": "disparity", "quantiles": [0.0, 1.0]}}
# All three formats multiply the latents of Stable Diffusion's VAE by this.
LATENT_SCALE = 0.18215
IMAGENET_CLASSES = 1000


def convert(
    format: Literal["mmgen", "repa", "sit"],
    checkpoint: Path,
    output: Path,
    vae: str = "stabilityai/sd-vae-ft-mse",
    weights: Literal["ema", "model"] = "ema",
    num_heads: PositiveInt | None = None,
) -> None:
    """Convert a checkpoint of MMGen, REPA or SiT into a pipeline folder.

    The folder is used by generate, understand, condition and evaluate (--model OUTPUT). Training can start from it, also with
    more modalities than the checkpoint has (--model.pretrained OUTPUT --data.whitening vae). Outputs are those of the
    official networks; SiT's time, which runs from noise to data, is turned round within the weights. The alignment projector
    is kept. With 1000 classes, their names are ImageNet's.

    The file is read without running code: a pickle with other objects than tensors, numbers and training arguments is refused.

    The official sampler is --scheduler euler_maruyama --num_inference_steps 250. MMGen's depth is disparity from 0 to 1 over
    each image; its normals are in the frame of its labels; its segmentation has colours without names, so its label ids number
    the nearest of 64 colours.

    Args:
        format: mmgen (RGB, depth, normals, segmentation), repa or sit (RGB alone).
        checkpoint: The .pt file: a training checkpoint (model, ema, args), or a state dict alone.
        output: The new folder; it must not exist, or be empty.
        vae: Folder of the VAE the latents came from, a pipeline folder, a bundled model's name, or a Hub id.
        weights: ema (averaged) or model (raw).
        num_heads: Attention heads, only for a width that is not one of S, B, L and XL.
    """
    _check_output(output)
    # Not in the output itself, which a conversion makes anew; what it prepares lies beside it.
    with FolderLock(output.parent / f".{output.name}.lock", "mmdit convert"):
        _check_output(output)
        _convert(format, checkpoint, output, vae, weights, num_heads)


def _convert(format: str, checkpoint: Path, output: Path, vae: str, weights: str, num_heads: int | None) -> None:
    import torch

    from mmdit.cli.common.model import load_vae, quiet_libraries
    from mmdit.flow.schedulers import make_scheduler
    from mmdit.modalities import get_modalities
    from mmdit.models.convert import convert_state_dict
    from mmdit.models.transformer import MultimodalDiT
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

    quiet_libraries()
    state, args = read_checkpoint(checkpoint, weights)
    try:
        converted = convert_state_dict(format, state, args, num_heads)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{checkpoint}: its training arguments are of another kind ({error})") from error
    with torch.device("meta"):
        transformer = MultimodalDiT(**converted.config)
    transformer.load_state_dict(converted.state_dict, assign=True)
    autoencoder = load_vae(vae)
    if autoencoder.config.latent_channels != transformer.config.in_channels:
        raise UserError(
            f"--vae {vae!r} has latents of {autoencoder.config.latent_channels} channels, "
            f"{checkpoint} of {transformer.config.in_channels}: give the VAE that it was trained with"
        )
    scale, shift = autoencoder.config.scaling_factor, autoencoder.config.shift_factor
    if abs(scale - LATENT_SCALE) > 1e-6 or shift:
        raise UserError(
            f"--vae {vae!r} scales its latents by {scale} and shifts them by {shift}: these checkpoints need the VAE of "
            f"Stable Diffusion 1 or 2, which scales by {LATENT_SCALE}, such as stabilityai/sd-vae-ft-mse"
        )
    modalities = {
        name: modality.replace(**MMGEN_SETTINGS.get(name, {}))
        for name, modality in get_modalities(converted.config["modalities"]).items()
    }
    id2label = _imagenet_names() if converted.config["num_classes"] == IMAGENET_CLASSES else None
    pipe = MultimodalDiTPipeline(transformer.eval(), autoencoder, make_scheduler("euler"), modalities, id2label)
    _save(pipe, output)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    print(
        f"{output}: {', '.join(modalities)}; {count / 1e6:.1f} M parameters, {converted.config['num_classes']} classes"
    )


def read_checkpoint(path: Path, weights: str = "ema") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict and the training arguments of a .pt file, its tensors memory-mapped.

    Args:
        weights: "ema" or "model", of a training checkpoint; a state dict alone is returned unchanged.

    Raises:
        UserError: no such file, not a checkpoint, objects that only running code could load, or those weights missing.
    """
    import pickle

    import torch

    from mmdit.storage.weights import check_archive, refuse_irregular

    refuse_irregular(path)
    try:
        check_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused a line later
            # Files of PyTorch before 1.6 are not zip archives and can't be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        if "Unsupported global" in text or "GLOBAL" in text:
            named = text.split("GLOBAL ")[-1].split()[0] if "GLOBAL " in text else "code"
            raise UserError(
                f"{path}: holds pickled objects ({named}), which can run code, and is not loaded"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged archive raises whatever its parts do
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    args = content.get("args", {})
    state: Any = content
    if "ema" in content or "model" in content:
        if weights not in content:
            raise UserError(
                f"{path}: has no {weights!r} weights; it holds {', '.join(map(str, content))}: see --weights"
            )
        state = content[weights]
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: its weights are a {type(state).__name__}, not a dictionary of tensors")
    for key, value in state.items():
        if not isinstance(key, str):
            raise UserError(f"{path}: is not a checkpoint of such a network: {key!r} can't be a tensor's name")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = f"tensor of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise UserError(f"{path}: is not a checkpoint of such a network: {str(key)!r} is a {kind}")
    args = vars(args) if isinstance(args, argparse.Namespace) else args or {}
    if not isinstance(args, Mapping):
        raise UserError(f"{path}: its training arguments are a {type(args).__name__}, not names with values")
    return dict(state), {str(key): value for key, value in args.items()}


def _damaged(path: Path, error: Exception) -> UserError:
    if path.stat().st_size == 0:
        return UserError(f"{path}: the file is empty")
    # PyTorch first explains at length how to load such a file; what is wrong with it comes last.
    reason = " ".join(str(error).split()).split("WeightsUnpickler error: ")[-1] or type(error).__name__
    return UserError(f"{path}: is not a checkpoint of PyTorch, or damaged ({reason[:120]}); it was not loaded")


def _check_output(output: Path) -> None:
    if not output.name:
        raise UserError(f"--output {output} has no name: give a new folder")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--output {output} can't be made: {above} is not a folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists already: remove it, or choose another folder")


def _save(pipe: Any, output: Path) -> None:
    """Write what ``save_pretrained`` writes, as a folder that appears whole."""
    from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

    from mmdit.pipelines.card import write_card
    from mmdit.storage.files import share_weights, writing_folder
    from mmdit.storage.mapped_weights import write_safetensors

    output.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = sum(weight.nbytes for part in (pipe.transformer, pipe.vae) for weight in part.state_dict().values())
    free = shutil.disk_usage(output.parent).free
    if free < num_bytes:
        raise UserError(f"--output {output} needs {num_bytes / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")
    with writing_folder(output) as temporary:
        pipe.save_config(temporary)
        write_card(temporary, pipe.model_card())
        pipe.vae.save_pretrained(temporary / "vae")
        pipe.scheduler.save_pretrained(temporary / "scheduler")
        # Not by its save_pretrained, which holds all weights in memory once more.
        pipe.transformer.save_config(temporary / "transformer")
        write_safetensors(temporary / "transformer" / SAFETENSORS_WEIGHTS_NAME, pipe.transformer.state_dict())
        share_weights(temporary)


def _imagenet_names() -> dict[int, str]:
    from timm.data import ImageNetInfo

    names = ImageNetInfo("imagenet-1k")
    return {index: names.index_to_description(index) for index in range(IMAGENET_CLASSES)}
