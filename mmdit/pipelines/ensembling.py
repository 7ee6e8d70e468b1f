"""Estimates of one picture from different noise, as one, and where they disagree (Marigold, arXiv 2312.02145)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdit.errors import UserError
from mmdit.modalities import IMAGE, Codec
from mmdit.pipelines.conditions import GivenImages
from mmdit.pipelines.editing import Edit

Raw = dict[str, np.ndarray]
MAX_MEMBERS = 1000


def check_ensemble(
    ensemble_size: Any, output_uncertainty: bool, *, given: GivenImages, edit: Edit, latents: Any, output_type: str
) -> None:
    """Raise UserError for a size that is no count, or for a call whose samples have no common truth to agree on."""
    if isinstance(ensemble_size, bool) or not isinstance(ensemble_size, int | np.integer):
        raise UserError(f"ensemble_size is {ensemble_size!r}: give a whole number, at least 1")
    if not 1 <= ensemble_size <= MAX_MEMBERS:
        raise UserError(f"ensemble_size is {ensemble_size}: give a whole number from 1 to {MAX_MEMBERS}")
    if ensemble_size == 1:
        if output_uncertainty:
            raise UserError("output_uncertainty is True, and ensemble_size is 1: give at least 2 estimates to compare")
        return
    if edit.asked_by is not None or not given.everywhere(IMAGE):
        raise UserError(
            f"ensemble_size is {ensemble_size}: estimates of a whole picture are ensembled: give "
            f"conditions={{'{IMAGE}': image}}, and neither mask nor keep"
        )
    if latents is not None:
        raise UserError(
            f"ensemble_size is {ensemble_size}, and latents are given: each estimate draws noise of its own"
        )
    if output_type == "latent":
        raise UserError(f"ensemble_size is {ensemble_size}, and output_type 'latent': latents are not ensembled")


def combine(members: Sequence[Raw], codecs: Mapping[str, Codec], given: GivenImages) -> tuple[Raw, Raw]:
    """Combine the estimates of N samples.

    Args:
        members: name -> raw arrays (N, H, W[, channels]) of each estimate.
        codecs: of the modalities, which say how theirs are combined.
        given: what needs no estimate.

    Returns:
        name -> combined raw arrays, and name -> (N, H, W) float32 where the estimates disagree, 0 = nowhere; a single
        estimate as it is, and nothing.
    """
    if len(members) == 1:
        return members[0], {}
    combined, uncertainty = dict(members[0]), {}
    for name, codec in codecs.items():
        if given.everywhere(name):
            continue
        known = given.present[name].tolist() if name in given.present else [False] * len(combined[name])
        pairs = [
            (first, np.zeros(first.shape[:2], np.float32))
            if is_known
            else codec.ensemble(np.stack([member[name][index] for member in members]))
            for index, (first, is_known) in enumerate(zip(combined[name], known, strict=True))
        ]
        combined[name] = np.stack([value for value, _ in pairs])
        uncertainty[name] = np.stack([spread for _, spread in pairs])
    return combined, uncertainty
