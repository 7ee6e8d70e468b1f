"""The model behind a command: where it runs, in which precision, and what it says while loading."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmdit.bounds import MAX_SEED
from mmdit.errors import UserError, first_line, one_line

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]
BUNDLED_MODEL = "scenes64"
MAX_IMAGES = 10_000_000  # of one command: more can't be meant


def note(message: str) -> None:
    """Tell the user something on stderr; it is not an error."""
    print(f"mmdit: note: {message}", file=sys.stderr)


def one_or_none(value: str | None) -> list[str]:
    """An option that may be given once, as a list."""
    return [] if value is None else [value]


def choose_device(name: str) -> torch.device:
    """ "auto" (CUDA, then Apple's MPS, then the CPU) or a device of PyTorch's.

    Raises UserError where it isn't there, or lacks the kernels that the environment asks for.
    """
    from mmdit.models.layers import check_kernels

    device = _find_device(name)
    check_kernels(device)
    return device


def _find_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # "meta" makes tensors, but they hold nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        found += ["mps"] if torch.backends.mps.is_available() else []
        raise UserError(
            f"--device {name!r} can't be used here ({first_line(error)}): give auto or one of {', '.join(found)}"
        ) from None
    return device


def choose_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU that has it and float32 elsewhere."""
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return getattr(torch, name)


def check_seed(seed: int, num_images: int) -> None:
    """Refuse more images than can be meant, and a seed from which so many don't go. Raises UserError."""
    if num_images > MAX_IMAGES:
        raise UserError(f"--num_images makes {num_images} images: give at most {MAX_IMAGES} to one command")
    if seed > MAX_SEED - num_images:
        raise UserError(f"--seed is {seed}: give a whole number from 0 to {MAX_SEED - num_images}")


def quiet_libraries() -> None:
    """Keep other libraries' chatter off the terminal; our own warnings become notes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    # Each try to reach the Hub writes a line; one line at the end says that it failed.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="huggingface_hub")
    logger = logging.getLogger("mmdit")
    if not logger.handlers:
        logger.addHandler(_NoteHandler())
        logger.propagate = False


class _NoteHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def load_pipeline(
    model: str,
    device: str = "auto",
    dtype: DtypeName = "auto",
    scheduler: str | None = None,
    *,
    lora: str | None = None,
    lora_scale: float = 1.0,
) -> MultimodalDiTPipeline:
    """Load a bundled name, a folder or a Hub id onto a device, with LoRA weights added to the model's.

    Raises:
        UserError: no such model, a folder that is not whole, an unknown scheduler, a device that this machine lacks, LoRA
            weights that are not there or of another model, a scale without them.
    """
    if lora is None and lora_scale != 1:
        raise UserError(
            f"--lora_scale {lora_scale:g}: no --lora is given that it could weigh: give one, or leave it out"
        )
    where = choose_device(device)
    quiet_libraries()
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

    try:
        pipe = MultimodalDiTPipeline.from_pretrained(model, torch_dtype=choose_dtype(dtype, where))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model!r} can't be loaded: {one_line(error)}") from error
    if lora is not None:
        pipe.load_lora_weights(lora)
        pipe.fuse_lora(lora_scale=lora_scale)
        pipe.unload_lora_weights()
    if scheduler is not None:
        from mmdit.flow.schedulers import make_scheduler, shift_of

        pipe.scheduler = make_scheduler(scheduler, shift_of(pipe.scheduler))
    return pipe.to(where)


def lora_settings(lora: str | None, lora_scale: float) -> dict[str, Any]:
    """What a record says of LoRA weights: where they are, their content, and their scale; nothing where there are none."""
    if lora is None:
        return {}
    from mmdit.pipelines.lora_file import find_lora
    from mmdit.storage.digests import digest_file

    return {"lora": {"path": lora, "sha256": digest_file(find_lora(lora)), "scale": lora_scale}}


def load_vae(name: str) -> AutoencoderKL:
    """Load an autoencoder: its own folder, a pipeline folder or a bundled model (their ``vae``), or a Hub id.

    Raises:
        UserError: none of these, or a folder that can't be loaded.
    """
    from diffusers import AutoencoderKL

    from mmdit.hub import is_hub_id, out_of_reach
    from mmdit.pipelines.loading import bundled_models
    from mmdit.storage.component import load_component, refuse_code
    from mmdit.storage.weights import refuse_non_finite

    quiet_libraries()
    folder = bundled_models().get(name, Path(name))
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    if not folder.is_dir() and not is_hub_id(name):
        raise UserError(
            f"--vae {name!r} is not a folder, a bundled model or a Hub id: known here {', '.join(bundled_models()) or 'none'}"
        )
    if folder.is_dir():
        try:
            return load_component(folder, AutoencoderKL)
        except UserError as error:
            raise UserError(f"--vae {name!r} can't be loaded: {error}") from error
    offline = out_of_reach(name)
    try:
        config = AutoencoderKL.load_config(name, local_files_only=offline)
        refuse_code(config, f"{name}: config.json")
        vae = AutoencoderKL.from_pretrained(name, use_safetensors=True, local_files_only=offline)
    except (OSError, ValueError) as error:
        reason = "the Hub can't be reached and its cache lacks it" if offline else one_line(error)
        advice = f"a folder needs no network, nor does the bundled {BUNDLED_MODEL!r}"
        raise UserError(f"--vae {name!r} can't be loaded: {reason}; {advice}") from error
    refuse_non_finite(vae, f"--vae {name!r}")
    return vae
