"""Prompts of a call as users write them -> what the transformer and guidance are given.

B samples of the call: N prompts, each ``num_images`` times; one prompt counts for all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmdit.conditioning import Conditioner, Conditioning, EncodedPrompts
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.encoders.prompts import PROMPT_ENCODERS, make_prompt_encoder
from mmdit.errors import UserError
from mmdit.modalities.codec import NOTHING
from mmdit.models.prompted import PromptConditioner
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.arguments import repeated
from mmdit.pipelines.conditions import common_count
from mmdit.prompt import Prompt, parse

DEFAULT_FUSING_SCALE = 0.5  # UMM-Diffusion's (arXiv 2303.09319, section 4.1)


@dataclass(frozen=True)
class Branches:
    """The conditionings that guidance combines, B samples each.

    Args:
        conditioning: the class labels and the whole prompts.
        text: the same without the subjects' images; None = there are none, and nothing is fused.
        null: no prompt, or the negative one; None = nothing was asked for, and guidance has nothing to lead away from.
    """

    conditioning: Conditioning
    text: Conditioning | None = None
    null: Conditioning | None = None


@dataclass(frozen=True)
class Words:
    """What a call asks for in words: of each, one for each sample or one for all.

    Args:
        labels: class ids, None = none.
        prompts: ``Prompt`` or None each; of a conditioner that reads prompts itself, what the call holds. None = none at all.
        negative: what guidance leads away from, in the same form.
    """

    labels: list[int | None]
    prompts: list[Any] | None = None
    negative: list[Any] | None = None

    def prompt_counts(self) -> dict[str, int]:
        """How many prompts there are, by argument."""
        given = {"prompt": self.prompts, "negative_prompt": self.negative}
        return {name: len(values) for name, values in given.items() if values is not None}

    def count(self, others: Mapping[str, int] = NOTHING) -> int:
        """The number of samples that words, and ``others`` by argument, ask for. Raises UserError where they differ."""
        return common_count({"class_labels": len(self.labels), **others, **self.prompt_counts()}, "inputs")

    def repeat(self, batch: int, num_images: int) -> Words:
        """B labels, of B = ``batch`` x ``num_images`` samples; prompts, which cost more, are repeated once they are encoded."""
        return replace(self, labels=repeated(self.labels, batch, num_images))

    @property
    def has_prompts(self) -> bool:
        """Whether there is a prompt or a negative one."""
        return bool(self.prompt_counts())

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a label nor a prompt."""
        return not self.has_prompts and all(label is None for label in self.labels)

    @property
    def has_images(self) -> bool:
        """Whether a subject is shown by an image."""
        return any(isinstance(prompt, Prompt) and prompt.images for prompt in self.prompts or ())


def read_prompts(conditioner: str, labels: list[int | None], prompt: Any, subjects: Any, negative_prompt: Any) -> Words:
    """Read the arguments of a call for a conditioner, by its name.

    Args:
        labels: class ids, as resolved.
        prompt: a text with braces, or a list of texts, one sample each; None = none.
        subjects: of one prompt word -> image, or images in the order of the braces; of a list of prompts a list of these.
        negative_prompt: a text, or a list; None and "" = none.

    Raises:
        UserError: as ``mmdit.prompt.parse``; another number of subjects than of prompts; subjects without a prompt.
    """
    if conditioner not in PROMPT_ENCODERS:
        if subjects is not None:
            raise UserError(
                "this model takes no subjects' images: leave subjects out, or take a model that reads prompts with them"
            )
        return Words(labels, _listed(prompt), _listed(negative_prompt))
    if prompt is None and subjects is not None:
        raise UserError("subjects are given without a prompt: give one that names them, such as 'a {torus}'")
    given = [subjects]
    if isinstance(prompt, list | tuple):
        given = _of_each(subjects, len(prompt))
    prompts = _listed(prompt)
    if prompts is not None:
        prompts = [None if each is None else parse(each, own) for each, own in zip(prompts, given, strict=True)]
    negative = _listed(negative_prompt)
    if negative is not None:
        negative = [None if each in (None, "") else parse(each) for each in negative]
    return Words(labels, prompts, None if negative is None or not any(negative) else negative)


def _listed(value: Any) -> list[Any] | None:
    """One or several -> a list."""
    if isinstance(value, list | tuple):
        if not value:
            raise UserError("prompt is an empty list: give a text, a list of texts, or None")
        return list(value)
    return None if value is None else [value]


def _of_each(subjects: Any, count: int) -> list[Any]:
    if subjects is None:
        return [None] * count
    if not isinstance(subjects, list | tuple) or len(subjects) != count:
        what = f"{len(subjects)}" if isinstance(subjects, list | tuple) else f"a {type(subjects).__name__}"
        raise UserError(f"subjects is {what} for a list of {count} prompts: give a list with one for each, None = none")
    return list(subjects)


def check_labels(words: Words, id2label: Mapping[int, str]) -> None:
    """A prompt and a class label are both used, so they must not contradict each other.

    Raises:
        UserError: a prompt names categories of the model, and not that of its sample's label.
    """
    labels, prompts = words.labels, words.prompts
    if prompts is None or not any(label is not None for label in labels):
        return
    ids_of: dict[str, set[int]] = {}
    for index, names in id2label.items():
        for name in names.split(","):
            ids_of.setdefault(name.strip().casefold(), set()).add(index)
    ids_of.pop("", None)
    if not ids_of:
        return
    longest_first = "|".join(re.escape(name) for name in sorted(ids_of, key=len, reverse=True))
    named = re.compile(rf"(?<!\w)({longest_first})(?:e?s)?(?!\w)")
    count = max(len(labels), len(prompts))
    for label, prompt in zip(repeated(labels, count, 1), repeated(prompts, count, 1), strict=False):
        if label is None or not isinstance(prompt, Prompt):
            continue
        found = list(dict.fromkeys(named.findall(prompt.text.casefold())))
        if found and not any(label in ids_of[name] for name in found):
            raise UserError(
                f"prompt {prompt.template!r} names {', '.join(found)}, and the category is {id2label.get(label, label)!r}: "
                "name it in the prompt too, or leave one of the two out"
            )


def fusing_scale_of(conditioner: Conditioner, fusing_scale: float | None) -> float:
    """α of a call. Raises UserError for one that is given where the conditioner has no branch of text alone."""
    if conditioner.fuses_subjects:
        return DEFAULT_FUSING_SCALE if fusing_scale is None else fusing_scale
    if fusing_scale is not None:
        raise UserError(
            f"fusing_scale is {fusing_scale!r}, but this model has no prediction from the text alone to fuse with: leave it out"
        )
    return 1.0


def encoder_of(transformer: MultimodalDiT, components: Mapping[str, Any]) -> FrozenPromptEncoder | None:
    """Build the encoder of a transformer's prompts from the pipeline's components; None = its conditioner needs none.

    Raises:
        UserError: components that are missing, or of another width than the conditioner was trained with.
    """
    name = transformer.config.conditioner
    if name not in PROMPT_ENCODERS:
        return None
    encoder = make_prompt_encoder(name, components)
    defaults = inspect.signature(type(transformer.conditioner).__init__).parameters
    for setting, width in encoder.widths.items():
        trained = transformer.config.conditioner_settings.get(setting, defaults[setting].default)
        if trained != width:
            raise UserError(f"the encoder of prompts has {setting} {width}, the transformer was trained with {trained}")
    conditioner = transformer.conditioner
    assert isinstance(conditioner, PromptConditioner), name
    encoder.max_subjects = conditioner.max_subjects
    return encoder


def make_branches(
    conditioner: Conditioner,
    encoder: FrozenPromptEncoder | None,
    words: Words,
    device: torch.device,
) -> Branches:
    """Encode what B samples are asked for.

    Args:
        conditioner: of the transformer.
        encoder: of its prompts; None = the conditioner reads them itself.
        words: B labels; N prompts or 1.
        device: of the result.
    """
    labels, batch = words.labels, len(words.labels)

    def conditioning(labels: list[int | None], prompts: Any) -> Conditioning:
        return conditioner(conditioner.of_inputs(labels, prompts)).to(device)

    def encoded(prompts: list[Any] | None) -> Any:
        if prompts is None:
            return None
        if encoder is None:
            return [prompt for prompt in prompts for _ in range(batch // len(prompts))]
        return _moved(encoder(prompts).repeat(batch // len(prompts)), conditioner, device)

    prompts = encoded(words.prompts)
    full = conditioning(labels, prompts)
    text = None
    if conditioner.fuses_subjects and words.has_images:
        text = conditioning(labels, prompts.text_only())
    null = None
    if words.negative is not None:
        null = conditioning([None] * batch, encoded(words.negative))
    elif prompts is not None or any(label is not None for label in labels):
        null = conditioner.null(batch).to(device)
    return Branches(full, text, null)


def _moved(prompts: EncodedPrompts, conditioner: Conditioner, device: torch.device) -> EncodedPrompts:
    """To the conditioner's weights; where they are offloaded, to where they will be."""
    weight = next(conditioner.parameters())
    return prompts.to(device if weight.is_meta else weight.device, weight.dtype)
