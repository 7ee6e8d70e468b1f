"""UNIMO-G's way to take prompts (arXiv 2401.13388, section 2.1): the states of a multimodal LLM.

Words and images are in one sequence.
"""

from __future__ import annotations

from mmdit.models.prompted import PromptConditioner


class InterleavedConditioner(PromptConditioner):
    """An interleaved prompt, read by a frozen multimodal LLM (``mmdit.encoders.multimodal``), beside a class label.

    The LLM's states, those of words and of images alike, are normed and projected: nothing else is trained, and images are
    in the states already. So there is no way back to the text alone, and nothing to fuse.
    ``dropout_prob`` (0.1) of the prompts are dropped in training, for classifier-free guidance.

    Args:
        num_classes, hidden_size, dropout_prob: as in ``ClassConditioner``; D.
        text_width: W, width of the LLM.
        settings: those of ``PromptConditioner``.
    """

    def __init__(
        self, num_classes: int, hidden_size: int, dropout_prob: float = 0.1, *, text_width: int = 4096, **settings: int
    ) -> None:
        super().__init__(num_classes, hidden_size, dropout_prob, text_width=text_width, **settings)
