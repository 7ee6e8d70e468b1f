"""What the encoder of a kind of prompt is: frozen networks, named as the pipeline's components are."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from mmdit.conditioning import EncodedPrompts
from mmdit.prompt import Prompt


class FrozenPromptEncoder(nn.Module, ABC):
    """Encodes prompts for one conditioner.

    A new kind is one subclass and one entry in ``mmdit.encoders.prompts.PROMPT_ENCODERS``.

    Attributes:
        required: the pipeline's components that it can't do without.
        optional: those that it can.
        max_subjects: the most images in one prompt.
    """

    required: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    max_subjects: int

    @classmethod
    @abstractmethod
    def of_components(cls, components: Mapping[str, Any]) -> FrozenPromptEncoder:
        """Build from the pipeline's components, name -> model, tokenizer or processor; the required ones are there."""

    @classmethod
    @abstractmethod
    def load(
        cls, text_encoder: str, image_encoder: str | None = None, hidden_layer: int | None = None
    ) -> FrozenPromptEncoder:
        """Load by folders or Hub ids; ``hidden_layer``: whose states are the prompt, None = the encoder's own choice.

        Raises:
            UserError: they can't be loaded, or have no such choice.
        """

    @property
    @abstractmethod
    def components(self) -> dict[str, Any]:
        """What a pipeline is built with: component -> model, tokenizer or processor."""

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """Settings of the conditioner that must be these, such as "text_width"."""

    @abstractmethod
    def read(self, prompts: Sequence[Prompt | None]) -> Any:
        """What ``encode`` takes, by tokenizers and processors alone: tensors on the CPU, in dictionaries and lists.

        No network runs, so processes that load data can do it.

        Raises:
            UserError: words or images that the encoder can't read, too many of them, or too long a text.
        """

    @abstractmethod
    def encode(self, read: Any) -> EncodedPrompts:
        """Encode what ``read`` gave; its tensors may have been moved to any device."""

    def check(self, prompts: Sequence[Prompt | None]) -> None:
        """Raise the UserError that ``forward`` would, without running a network."""
        self.read(prompts)

    @abstractmethod
    def locate(self, mentions: Sequence[Prompt | None], read: Any) -> Tensor:
        """The mention that each token of ``forward``'s states belongs to, (B, L) int64, ``NO_SUBJECT`` = none.

        Args:
            mentions: the texts that ``forward`` is given, with a span for each mention; they are counted over the batch.
            read: what ``read`` gave for the prompts, in which some of the words may have images.

        Raises:
            UserError: a tokenizer that doesn't say which words its tokens come from.
        """

    def forward(self, prompts: Sequence[Prompt | None]) -> EncodedPrompts:
        """Encode prompts; None = a sample without one. Independent of padding and of the other prompts.

        Raises:
            UserError: as ``read``.
        """
        return self.encode(self.read(prompts))


Part = TypeVar("Part", bound=nn.Module)


def without_networks(encoder: Part) -> Part:
    """Copy an encoder of prompts so that it can ``read`` and no more: in place of its networks are their configurations.

    It is what processes that load data are given; where they don't begin as copies of this one, the weights of a large language
    model would be sent to each.
    """
    copied = copy.copy(encoder)
    copied._modules = {}
    for name, child in encoder.named_children():
        config = getattr(child, "config", None)  # a network's; the encoders' own parts have none
        setattr(copied, name, without_networks(child) if config is None else SimpleNamespace(config=config))
    return copied
