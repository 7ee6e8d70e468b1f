"""What a call of the pipeline is given, judged before any work: counts, seeds, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from mmdit.bounds import MAX_SEED
from mmdit.errors import UserError, unknown_name
from mmdit.flow.guidance import is_number
from mmdit.modalities import IMAGE
from mmdit.modalities.depth_values import DEPTH_VALUES
from mmdit.modalities.stored import check_dense
from mmdit.pipelines.limits import check_steps

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def split_images(first: Any, conditions: Any) -> tuple[Any, Any]:
    """The first argument of a call, class labels or pictures to understand -> labels, conditions.

    Raises:
        UserError: pictures among labels, as arrays, or beside conditions that have RGB already.
    """
    listed = list(first) if isinstance(first, list | tuple) else [first]
    if not any(isinstance(each, Image.Image) for each in listed):
        one_more = 0 if isinstance(first, list | tuple) else 1  # an array of labels has one dimension, in a list none
        if any(getattr(each, "ndim", 0) > one_more for each in listed):
            raise UserError(
                "the first argument holds arrays: give PIL images to understand, or arrays as conditions={'rgb': array}"
            )
        return first, {} if conditions is None else conditions
    if not all(isinstance(each, Image.Image) for each in listed):
        other = next(type(each).__name__ for each in listed if not isinstance(each, Image.Image))
        raise UserError(f"the first argument holds images and a {other}: give images alone, or class labels alone")
    if not isinstance(conditions, Mapping | None):
        raise UserError("images are given beside a list of conditions: give them there, as {'rgb': image}")
    if IMAGE in (conditions or {}):
        raise UserError(f"an image is given twice, first and as conditions[{IMAGE!r}]: give one of the two")
    return None, {IMAGE: listed, **(conditions or {})}


def check_counts(num_images: Any, num_inference_steps: Any, num_estimation_steps: Any) -> None:
    """Raise UserError for a count that is no whole number from 1, or too many steps; None = the model's own steps."""
    counts = {
        "num_images": num_images,
        "num_inference_steps": 1 if num_inference_steps is None else num_inference_steps,
        "num_estimation_steps": num_estimation_steps,
    }
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise UserError(f"{name} is {value!r}: give a whole number, at least 1")
        if name.endswith("_steps"):
            check_steps(int(value), name)


def check_choices(condition_time: float, output_type: str, depth_values: str, **flags: bool) -> None:
    """Raise UserError for a time outside [0, 1], an unknown name, or a flag, by its name, that is neither True nor False."""
    if not is_number(condition_time) or not 0 <= condition_time <= 1:
        raise UserError(f"condition_time is {condition_time!r}: give a time from 0 (clean) to 1, near 0")
    if output_type not in OUTPUT_TYPES:
        raise unknown_name("output_type", output_type, OUTPUT_TYPES)
    if depth_values not in DEPTH_VALUES:
        raise unknown_name("depth_values", depth_values, DEPTH_VALUES)
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise UserError(f"{name} is {value!r}: give True or False")


def initial_noise(
    latents: Tensor | None,
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
) -> Tensor:
    """Noise of ``shape`` (B, M, C, h, w), float32: ``latents``, or drawn. Raises UserError for what doesn't fit."""
    for each in generator if isinstance(generator, list) else [generator]:
        if each is not None and not isinstance(each, torch.Generator):
            hint = "torch.Generator().manual_seed(0), or a list with one per sample"
            raise UserError(f"generator is or holds a {type(each).__name__}: give {hint}")
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise UserError(f"generator is a list of {len(generator)} for {shape[0]} samples: give one per sample, or one")
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    if not isinstance(latents, Tensor):
        raise UserError(f"latents is a {type(latents).__name__}: give a tensor of shape {shape}")
    check_dense(latents, "latents")
    if tuple(latents.shape) != shape:
        raise UserError(f"latents have shape {tuple(latents.shape)}: give {shape}")
    return latents.to(device, torch.float32)


def seeded(
    seed: int | Sequence[int] | None, generator: torch.Generator | list[torch.Generator] | None, batch: int
) -> torch.Generator | list[torch.Generator] | None:
    """Generators of a call: ``generator``, or those of its seeds, on the CPU, whose numbers are the same on every device.

    Raises:
        UserError: both are given, a seed that is no whole number from 0 to 2^63 - 1, or another number of them than ``batch``.
    """
    if seed is None:
        return generator
    if generator is not None:
        raise UserError("seed and generator are both given: give one of the two")
    seeds: list[Any] = list(seed) if isinstance(seed, list | tuple) else [seed]
    for each in seeds:
        if isinstance(each, bool) or not isinstance(each, int | np.integer) or not 0 <= each <= MAX_SEED:
            raise UserError(f"seed is or holds {each!r}: give a whole number from 0 to 2^63 - 1, or one per sample")
    if isinstance(seed, list | tuple) and len(seeds) != batch:
        raise UserError(f"seed is a list of {len(seeds)} for {batch} samples: give one per sample, or one for all")
    made = [torch.Generator().manual_seed(int(each)) for each in seeds]
    return made if isinstance(seed, list | tuple) else made[0]


def images_per_prompt(num_images: int, num_images_per_prompt: int | None) -> int:
    """``num_images`` by either of its names; diffusers has the second. Raises UserError where both are given."""
    if num_images_per_prompt is None:
        return num_images
    if num_images != 1:
        raise UserError("num_images and num_images_per_prompt are both given, and mean the same: give one of the two")
    return num_images_per_prompt


def repeated(values: list[Any], batch: int, num_images: int) -> list[Any]:
    """One value for each sample: a single one counts for the whole batch, and each is there ``num_images`` times."""
    return [value for value in (values * batch if len(values) == 1 else values) for _ in range(num_images)]
