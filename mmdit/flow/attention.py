"""Losses between the attention to a prompt's tokens and where what they name is in the picture; ``ATTENTION_LOSSES``.

N tapped blocks, B samples, T tokens of the image (h x w), L tokens of the prompt, S subjects of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# The largest value of a map is taken for at least this: below it a token is hardly read anywhere, and 1 / value overflows.
MIN_PEAK = 1e-6


def tapped_blocks(depth: int, count: int = 3) -> tuple[int, ...]:
    """Numbers of ``count`` blocks spread evenly over ``depth``, 1 = the first; fewer where there are no more."""
    return tuple(sorted({max(1, round(depth * (i + 1) / (count + 1))) for i in range(count)}))


def attention_mask_loss(
    attention: Tensor,
    subject_ids: Tensor,
    masks: Tensor,
    known: Tensor | None = None,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts,
    *,
    max_subjects: int | None = None,
) -> Tensor:
    """Return the mean of |CA(z_t, v_k) - M_k| over the subjects' tokens k, the locations and the blocks.

    UNIMO-G's loss (arXiv 2401.13388, section 2.2, "visual enhancement").

    The map of a token is divided by its own largest value: it says *where* the token is read, as M says where its object is,
    and not how much of the softmax it gets. Several tokens of one subject share the softmax with the words beside them, so no
    map could reach 1 otherwise, and the loss would pull all attention from the words. The gradient flows through that largest
    value too: without it every token whose object is small is read less and less, without end, until its map underflows.

    Args:
        attention: (N, B, T, L), attention of the image to the prompt, mean over heads, in row-major order of the locations.
        subject_ids: (B, L) int64, the subject of each token, counted over the batch; negative = none, so not in the loss.
        masks: (S, h, w) in [0, 1], the share of each location that the subject covers; h w = T.
        known: (S,) bool, False = where the subject is isn't known, so its tokens are not in the loss; None = all are.
        mean_over_processes: averages counts, so that averaging gradients over processes equals one process with all samples.
        max_subjects: largest number of subjects of a sample, None = not known; it changes no value of any loss.

    Returns:
        A scalar; 0 where no token counts.
    """
    counted, masks = _counted(subject_ids, masks, known)
    targets = masks[subject_ids.clamp_min(0)].transpose(1, 2)  # (B, T, L)
    peak = attention.amax(2, keepdim=True)  # (N, B, 1, L)
    maps = attention / peak.clamp_min(MIN_PEAK)
    per_token = (maps - targets.to(maps)).abs().mean((0, 2))  # (B, L)
    return _mean((per_token * counted).sum(), counted.sum().to(per_token.dtype), mean_over_processes)


def attention_choice_loss(
    attention: Tensor,
    subject_ids: Tensor,
    masks: Tensor,
    known: Tensor | None = None,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts,
    *,
    max_subjects: int | None = None,
) -> Tensor:
    """Return the cross-entropy of the subject that each location reads, among those of its prompt, against what is there.

    A location i reads the subject s with p_s(i) = sum over its tokens of CA(z_t, v_k), divided by that of all subjects; the
    loss is the mean of -log p_s(i), weighted by the share of i that s covers. How much is read of other words, and what
    locations without a subject read, is left alone; so is a sample with one subject.

    It is a proper scoring rule: where noise hides the layout, the best p_s(i) is the probability that s is at i, given the
    prompt. The best map of |CA - M| is then a single point, the mode, and the words of an object are read nowhere else just
    where "left of" has to be learned. (A classification by pixel in place of a distance: TokenCompose, arXiv 2312.03626.)

    Args:
        attention, subject_ids, masks, known, mean_over_processes: as in ``attention_mask_loss``.
        max_subjects: largest number of subjects of a sample, which is how many are looked at for each of them; None = not
            known, so as many as the batch has. (Asking ``subject_ids`` would let the host wait for the device in each step.)

    Returns:
        A scalar; 0 where no sample has two subjects.
    """
    counted, masks = _counted(subject_ids, masks, known)
    # Numbers within a sample, from 0: subjects are counted over the batch.
    first = torch.where(counted, subject_ids, len(masks)).amin(1, keepdim=True)  # (B, 1)
    local = torch.where(counted, subject_ids - first, -1)  # (B, L)
    within = torch.arange(max(1, len(masks) if max_subjects is None else max_subjects), device=local.device)  # (K,)
    own = local[..., None] == within  # (B, L, K)
    there = own.any(1)  # (B, K)
    read = torch.einsum("nbtl,blk->nbtk", attention, own.to(attention))
    p = read / read.sum(-1, keepdim=True).clamp_min(MIN_PEAK)
    numbers = (first + within).clamp_max(len(masks) - 1)  # (B, K)
    covered = masks[numbers].transpose(1, 2).to(p) * there[:, None]  # (B, T, K)
    covered = covered * (there.sum(1) > 1)[:, None, None]
    per_location = -(covered * p.clamp_min(MIN_PEAK).log()).mean(0)  # (B, T, K)
    return _mean(per_location.sum(), covered.sum(), mean_over_processes)


def _counted(subject_ids: Tensor, masks: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which tokens count, (B, L) bool, and masks (S, T) of at least one subject: all processes count, those without any too."""
    if len(masks) == 0:
        masks, known = masks.new_zeros(1, *masks.shape[1:]), None
    counted = subject_ids >= 0
    if known is not None:
        counted = counted & known[subject_ids.clamp_min(0)]
    return counted, masks.flatten(1)


def _mean(total: Tensor, count: Tensor, mean_over_processes: Callable[[Tensor], Tensor]) -> Tensor:
    """total / count, 0 where nothing counts in any process."""
    count = mean_over_processes(count)
    return total / torch.where(count > 0, count, 1)


ATTENTION_LOSSES: dict[str, Callable[..., Tensor]] = {"mask": attention_mask_loss, "choice": attention_choice_loss}


def masks_on_grid(masks: Sequence[Sequence[Any]], grid: tuple[int, int], device: Any = None) -> tuple[Tensor, Tensor]:
    """Pool where subjects are in their pictures to the grid of tokens.

    Args:
        masks: for each sample, for each of its subjects in the order of the prompt: (H, W), True or above 0 = the subject
            is there; None = not known.
        grid: (h, w).
        device: of the results.

    Returns:
        (S, h, w), the share of each cell that is covered, and (S,) bool, False = not known.
    """
    listed = [mask for sample in masks for mask in sample]
    pooled = torch.zeros(len(listed), *grid)
    for row, mask in enumerate(listed):
        if mask is not None:
            covered = torch.from_numpy(np.ascontiguousarray(np.asarray(mask) > 0)).float()
            pooled[row] = F.adaptive_avg_pool2d(covered[None], grid)[0]
    known = torch.tensor([mask is not None for mask in listed], dtype=torch.bool)
    return pooled.to(device), known.to(device)
