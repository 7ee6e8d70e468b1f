"""Captions are read once before the first step: one that an encoder refuses would else end a run when it is met, hours later."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from mmdit.data.prompted import PromptedLatents
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.errors import UserError
from mmdit.prompt import IMAGE_WORD, Prompt, mirror_text

logger = logging.getLogger(__name__)

MOST_SAMPLES = 200_000  # minutes, at 3,000 different captions a second; those beyond are checked as they are met
_AT_ONCE = 1024


def check_captions(samples: PromptedLatents, encoder: FrozenPromptEncoder) -> None:
    """Have an encoder read the captions of a split, and their mirror images where mirrored views are trained on.

    Raises:
        UserError: the first that it refuses, such as one that is too long; it names the sample.
    """
    if samples.draw.anonymous_share > 0:
        try:
            encoder.check([Prompt(IMAGE_WORD)])
        except UserError as error:
            raise UserError(f"prompts.anonymous_share is {samples.draw.anonymous_share}: {error}") from None
    ids = samples.latents.ids
    if len(ids) > MOST_SAMPLES:
        logger.warning(
            "prompts: the captions of the first %d of %d samples are checked before training", MOST_SAMPLES, len(ids)
        )
    check_texts(_texts(samples, ids[:MOST_SAMPLES]), encoder)


def check_texts(texts: Iterable[tuple[str, str]], encoder: FrozenPromptEncoder) -> None:
    """Check texts of samples (id, text), each once. Raises UserError as ``check_named``."""
    known: set[str] = set()

    def new() -> Iterator[tuple[str, Prompt]]:
        for name, text in texts:
            if text not in known:
                known.add(text)
                yield name, Prompt(text)

    prompts = new()
    while part := list(islice(prompts, _AT_ONCE)):
        check_named(part, encoder)


def _texts(samples: PromptedLatents, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
    for sample_id in ids:
        sample = samples.prompts.get(sample_id)
        for text in () if sample is None else sample.captions:
            yield sample_id, text
            if samples.latents.num_views > 1:
                yield sample_id, mirror_text(text)


def read_named(prompts: Sequence[tuple[str, Prompt | None]], encoder: FrozenPromptEncoder) -> Any:
    """What the encoder reads of prompts of samples (id, prompt). Raises UserError as ``check_named``."""
    try:
        return encoder.read([prompt for _, prompt in prompts])
    except UserError:
        check_named(prompts, encoder)
        raise


def check_named(prompts: Sequence[tuple[str, Any]], encoder: FrozenPromptEncoder) -> None:
    """Check prompts of samples (id, prompt). Raises the UserError of the first that is refused, with the sample's id."""
    try:
        encoder.check([prompt for _, prompt in prompts])
        return
    except UserError:
        for sample_id, prompt in prompts:
            try:
                encoder.check([prompt])
            except UserError as error:
                raise UserError(f"prompts.jsonl, sample {sample_id!r}: {error}") from None
        raise
