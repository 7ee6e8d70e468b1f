"""Conditioners: modules that turn a prompt into ``Conditioning``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdit.conditioning import Conditioning


class ClassConditioner(nn.Module):
    """A class label as a vector and no tokens, with an embedding of its own for "no label".

    Args:
        num_classes: number of classes K; the null label is row K of the table (DiT's convention).
        hidden_size: D.
        dropout_prob: share of labels that ``drop`` replaces by null, for classifier-free guidance.
    """

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float = 0.1) -> None:
        super().__init__()
        self.num_classes, self.dropout_prob = num_classes, dropout_prob
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, class_labels: Tensor | Sequence[int | None] | None = None) -> Conditioning:
        """(B,) ids -> Conditioning with vector (B, D). None, an id of None or -1, or K = the null label.

        Deterministic, in training too: ``drop`` is a step of its own. Raises IndexError for an id beyond K.
        """
        if class_labels is None:
            class_labels = [None]
        if not isinstance(class_labels, Tensor):
            class_labels = torch.tensor([-1 if label is None else label for label in class_labels])
        if not self.embedding_table.weight.is_meta:  # an offloaded table is brought back, and labels moved, by its hook
            class_labels = class_labels.to(self.embedding_table.weight.device)
        return Conditioning(self.embedding_table(torch.where(class_labels < 0, self.num_classes, class_labels)))

    def drop(self, class_labels: Tensor, draw: Tensor) -> Tensor:
        """Replace labels (B,) by the null label -1 where ``draw`` (B,), uniform in [0, 1), is below the dropout."""
        return torch.where(draw.to(class_labels.device) < self.dropout_prob, -1, class_labels)

    def null(self, batch_size: int) -> Conditioning:
        """The null label for a batch."""
        return self([None] * batch_size)
