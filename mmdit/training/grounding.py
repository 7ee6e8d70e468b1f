"""The loss between what the image reads of a prompt and where it is in the picture, on the batches of training.

B samples, T tokens of the image (h x w), L tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mmdit.conditioning import NO_SUBJECT, Conditioning
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.flow.attention import ATTENTION_LOSSES, masks_on_grid
from mmdit.prompt import Prompt, Span, parse_text
from mmdit.training.frozen import READ, Batch, FrozenNetworks, PromptReading


def _located(batch: Batch, encoder: FrozenPromptEncoder) -> Tensor:
    """The numbers (B, L) of what the tokens of all captions name, as ``mentions`` counts it."""
    mentions: list[Prompt | None] = []
    for template, spans in zip(batch["caption"], batch["mentions"], strict=True):
        text = parse_text(template) if template else ""
        marked = tuple(Span(start, end, i) for i, (start, end) in enumerate(spans))
        mentions.append(Prompt(text, marked) if template else None)
    read = batch[READ] if READ in batch else PromptReading(encoder)(batch)[READ]
    return encoder.locate(mentions, read)


class Grounded(NamedTuple):
    """What the attention loss is about.

    Args:
        masks: the entry of a batch that says where it is in the picture.
        locate: which token (B, L) names which of it; None = the conditioner's own numbers, of tokens that pictures stand for.
    """

    masks: str
    locate: Callable[[Batch, FrozenPromptEncoder], Tensor] | None = None


GROUNDED: dict[str, Grounded] = {
    # Tokens that a picture stands for (UNIMO-G's visual tokens).
    "subjects": Grounded("subject_masks"),
    # And all others that name something whose place in the picture is known.
    "words": Grounded("mention_masks", _located),
}
# Of a batch: masks on the grid of tokens, which are known, the most of a sample, and numbers of tokens or none.
GROUND = "ground"


@dataclass(frozen=True)
class Grounding:
    """Brings masks to the grid of tokens and finds the words that they belong to, in the process that loads the batch.

    Args:
        on: name in ``GROUNDED``.
        grid: h x w of the image's tokens.
    """

    on: str
    grid: tuple[int, int]

    def __call__(self, batch: Batch, encoder: FrozenPromptEncoder) -> Batch:
        """The batch with ``GROUND`` in place of what it was made of."""
        kind = GROUNDED[self.on]
        masks, known = masks_on_grid(batch[kind.masks], self.grid)
        found = {"masks": masks, "known": known, "most": max(map(len, batch[kind.masks]), default=0)}
        if kind.locate is not None:
            found["ids"] = kind.locate(batch, encoder)
        used = ("subject_masks", "mention_masks", "mentions")
        return {key: value for key, value in batch.items() if key not in used} | {GROUND: found}


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
        if GROUND not in batch:
            assert frozen.prompts is not None
            batch = Grounding(self.on, grid)(batch, frozen.prompts)
        found, device = batch[GROUND], attention.device
        ids = self.token_ids(batch, conditioning)
        return ATTENTION_LOSSES[self.kind](
            attention,
            ids,
            found["masks"].to(device),
            found["known"].to(device),
            mean_over_processes,
            max_subjects=found["most"],
        )

    def token_ids(self, batch: Batch, conditioning: Conditioning) -> Tensor:
        """What each token of the prompts of a grounded batch names, (B, L), ``NO_SUBJECT`` = nothing, or it is dropped."""
        if (ids := batch[GROUND].get("ids")) is None:
            assert conditioning.subject_ids is not None
            return conditioning.subject_ids
        assert conditioning.token_mask is not None
        return ids.to(conditioning.token_mask.device).masked_fill(~conditioning.token_mask, NO_SUBJECT)
