"""The loss between what the image reads of a prompt and where it is in the picture, on the batches of training.

B samples, T tokens of the image (h x w), L tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmdit.conditioning import NO_SUBJECT, Conditioning
from mmdit.flow.attention import ATTENTION_LOSSES, masks_on_grid
from mmdit.prompt import Prompt, Span, parse_text
from mmdit.training.frozen import Batch, FrozenNetworks


def _subjects(batch: Batch, conditioning: Conditioning, frozen: FrozenNetworks) -> tuple[Tensor, Any]:
    assert conditioning.subject_ids is not None
    return conditioning.subject_ids, batch["subject_masks"]


def _words(batch: Batch, conditioning: Conditioning, frozen: FrozenNetworks) -> tuple[Tensor, Any]:
    assert frozen.prompts is not None
    assert conditioning.token_mask is not None
    mentions: list[Prompt | None] = []
    for template, spans in zip(batch["caption"], batch["mentions"], strict=True):
        text = parse_text(template) if template else ""
        marked = tuple(Span(start, end, i) for i, (start, end) in enumerate(spans))
        mentions.append(Prompt(text, marked) if template else None)
    ids = frozen.prompts.locate(mentions).to(conditioning.token_mask.device)
    return ids.masked_fill(~conditioning.token_mask, NO_SUBJECT), batch["mention_masks"]


# Which tokens the attention loss is about -> (their numbers (B, L), masks of what they name, by sample).
GROUNDED: dict[str, Callable[[Batch, Conditioning, FrozenNetworks], tuple[Tensor, Any]]] = {
    "subjects": _subjects,  # those that a picture stands for (UNIMO-G's visual tokens)
    "words": _words,  # and all others that name something whose place in the picture is known
}


@dataclass(frozen=True)
class AttentionLoss:
    """An attention loss of ``mmdit.flow.attention``, with what it looks at.

    Args:
        weight: in the whole loss; 0 = off.
        blocks: numbers of the blocks whose attention to the prompt it compares, 1 = the first.
        on: name in ``GROUNDED``: of which tokens.
        kind: name in ``ATTENTION_LOSSES``.
    """

    weight: float = 0.0
    blocks: Sequence[int] = ()
    on: str = "subjects"
    kind: str = "mask"

    def __call__(
        self,
        attention: Tensor,
        batch: Batch,
        conditioning: Conditioning,
        *,
        frozen: FrozenNetworks,
        grid: tuple[int, int],
        mean_over_processes: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the loss of ``attention``, (N, B, T, L) of N blocks, on a ``grid`` of h x w tokens."""
        ids, masks = GROUNDED[self.on](batch, conditioning, frozen)
        pooled, known = masks_on_grid(masks, grid, attention.device)
        most = max(map(len, masks), default=0)
        return ATTENTION_LOSSES[self.kind](attention, ids, pooled, known, mean_over_processes, max_subjects=most)
