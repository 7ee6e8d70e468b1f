"""What one call may ask for, and how it fits into memory: refused before anything is computed, computed in batches.

H W pixels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.guidance import internally_guided
from mmdit.pipelines.defaults import MAX_STEPS
from mmdit.storage.weights import is_finite

logger = logging.get_logger(__name__)

MAX_IMAGE_PIXELS = 2**26  # 8192 x 8192
# A call returns all its samples at once, some 30 bytes a pixel.
MAX_CALL_PIXELS = 2**30
# Rows of one pass of the transformer: 128 of 32 x 32 latents; images of one pass of the VAE: 64 of 256 x 256.
MAX_BATCH_LATENTS = 2**17
MAX_BATCH_PIXELS = 2**22


def check_steps(num_inference_steps: int, name: str = "num_inference_steps") -> None:
    """Raise UserError for more steps than can be meant."""
    if num_inference_steps > MAX_STEPS:
        raise UserError(f"{name} is {num_inference_steps}: give at most {MAX_STEPS}")


def check_size(height: int, width: int) -> None:
    """Raise UserError for an image that no memory holds."""
    if height * width > MAX_IMAGE_PIXELS:
        raise UserError(f"height x width is {height} x {width}: give at most {MAX_IMAGE_PIXELS} pixels")


def check_call(num_samples: int, height: int, width: int, num_estimates: int = 1) -> None:
    """Raise UserError for more samples, of several estimates each, than one call holds; say where they are made in batches."""
    if num_samples * num_estimates * height * width > MAX_CALL_PIXELS:
        most = max(1, MAX_CALL_PIXELS // (height * width))
        estimates = "" if num_estimates == 1 else f", each {num_estimates} times"
        raise UserError(
            f"num_images makes {num_samples} samples of {height} x {width}{estimates}: ask for at most {most} in one call"
        )
    batch = batch_size(height * width, MAX_BATCH_PIXELS)
    if num_samples > batch:
        logger.warning(f"{num_samples} samples of {height} x {width} are computed in batches of at most {batch}")


def batch_size(size_of_one: int, most: int) -> int:
    """How many fit, at least one."""
    return max(1, most // size_of_one)


def parts(num_rows: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` rows."""
    return (slice(start, start + size) for start in range(0, num_rows, size))


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, pixels_of_one: int) -> Tensor:
    """``function(images)``, a function of each row alone, on as many rows at a time as fit."""
    size = batch_size(pixels_of_one, MAX_BATCH_PIXELS)
    if len(images) <= size:
        return function(images)
    return torch.cat([function(images[rows]) for rows in parts(len(images), size)])


def predict_in_batches(
    network: Callable[..., Any],
    latents: Tensor,
    timesteps: Tensor,
    roles: Tensor,
    conditioning: Conditioning,
    internal_scale: float = 1.0,
    timesteps_next: Tensor | None = None,
) -> Tensor:
    """``network(...).sample``, (B, M, C, h, w), on as many samples at a time as fit; guided from inside by ``internal_scale``."""
    size = batch_size(latents.shape[-2] * latents.shape[-1], MAX_BATCH_LATENTS)
    if len(latents) <= size:
        whole = slice(0, len(latents))
        return _predict(network, whole, internal_scale, timesteps_next, latents, timesteps, roles, conditioning)
    made = []
    for rows in parts(len(latents), size):
        given = (latents[rows], timesteps[rows], roles[rows], conditioning.rows(rows))
        later = None if timesteps_next is None else timesteps_next[rows]
        made.append(_predict(network, slice(rows.start, min(rows.stop, len(latents))), internal_scale, later, *given))
    return torch.cat(made)


def _predict(
    network: Callable[..., Any], rows: slice, internal_scale: float, timesteps_next: Tensor | None, *inputs: Any
) -> Tensor:
    """Call the network; a cache of its blocks is told which rows these are: only the same ones, of another step, are alike."""
    later = {} if timesteps_next is None else {"timesteps_next": timesteps_next}
    if internal_scale != 1:
        output = network(*inputs, output_internal=True, **later)
        return internally_guided(output.sample, output.internal_sample, internal_scale)
    if not getattr(network, "is_cache_enabled", False):
        return network(*inputs, **later).sample
    with network.cache_context(f"rows {rows.start} to {rows.stop}"):  # type: ignore[attr-defined]
        return network(*inputs, **later).sample


class FiniteWatch:
    """Find the step at which latents became NaN or infinite. On a GPU, wait for the end only, not for each step."""

    def __init__(self, num_steps: int, dtype: torch.dtype) -> None:
        self.num_steps, self.dtype = num_steps, dtype
        self._first: Tensor | None = None

    def see(self, latents: Tensor, step: int) -> None:
        """Look at the latents after ``step``, counted from 0. Raises UserError as ``check``, on the CPU at once."""
        if latents.device.type == "cpu":
            if not is_finite(latents):
                self._refuse(step)
            return
        bad = ~torch.isfinite(latents).all()
        now = torch.where(bad, step, self.num_steps)
        self._first = now if self._first is None else torch.minimum(self._first, now)

    def check(self) -> None:
        """Raise UserError naming the first step whose latents were not finite."""
        if self._first is not None and (first := int(self._first)) < self.num_steps:
            self._refuse(first)

    def _refuse(self, step: int) -> None:
        raise UserError(f"the latents are not finite after step {step + 1} of {self.num_steps}: {_remedy(self.dtype)}")


def refuse_decoded(images: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Return decoded images. Raises UserError where one is NaN or infinite."""
    if not is_finite(images):
        raise UserError(f"the decoded {name} is not finite, after the last step: {_remedy(dtype)}")
    return images


def _remedy(dtype: torch.dtype) -> str:
    wider = "" if dtype == torch.float32 else f", or float32 in place of {str(dtype).removeprefix('torch.')}"
    return f"take a smaller guidance scale{wider}, or look at the given images and weights"
