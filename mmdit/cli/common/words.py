"""What a command is asked for in words: categories, prompts with their subjects, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdit.cli.common.prompts import read_images, typed_prompts
from mmdit.cli.common.sampling import Asked, asked_for
from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


class Words:
    """Categories and prompts as they are typed.

    Args:
        categories: names or ids; prompts: texts with braces; subjects: WORD=FILE or FILE each, for the braces.
        negative_prompt: None = no prompt.
        fusing_scale: of subjects; None = the model's own.

    Raises:
        UserError: a prompt that can't be read, or an image that doesn't fit its braces or can't be read.
    """

    def __init__(
        self,
        categories: Sequence[str] = (),
        prompts: Sequence[str] | None = None,
        subjects: Sequence[str] | None = None,
        negative_prompt: str | None = None,
        fusing_scale: float | None = None,
    ) -> None:
        self.categories = list(categories)
        self.typed = typed_prompts(prompts, subjects)
        self.images = read_images(self.typed)
        self.negative_prompt, self.fusing_scale = negative_prompt or None, fusing_scale

    @property
    def asks(self) -> bool:
        """Whether anything is asked for, which guidance can follow."""
        return bool(self.categories or self.typed or self.negative_prompt)

    @property
    def count(self) -> int:
        """Kinds of samples that are asked for; 1 where nothing is."""
        return max(1, len(self.categories), len(self.typed))

    def asked(self, pipe: MultimodalDiTPipeline) -> list[Asked]:
        """Each kind of sample. Raises the UserError that a call would, without running a network."""
        found = asked_for(pipe, self.categories, self.typed)
        for one in found:
            pipe.check_prompt(
                *self._prompt(one), self.negative_prompt, class_labels=one.label, fusing_scale=self.fusing_scale
            )
        if self.fusing_scale is not None and not self.images:
            raise UserError(
                f"--fusing_scale {self.fusing_scale:g}: weighs subjects' images against the words, and none is given: give "
                "--subject, or leave it out"
            )
        return found

    def check_guidance(self, scale: float) -> None:
        """Raise UserError for a negative prompt that guidance of this scale doesn't lead away from."""
        if self.negative_prompt is not None and scale == 1:
            raise UserError(
                f"--negative_prompt {self.negative_prompt!r}: guidance leads away from it, and the scale is 1, none: give "
                "--guidance_scale 2, or leave it out"
            )

    def request(self, pipe: MultimodalDiTPipeline) -> dict[str, Any]:
        """What the requests of all samples say of the words, beside ``Asked.words``."""
        said: dict[str, Any] = {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}
        if self.images:
            said["fusing_scale"] = pipe.fusing_scale(self.fusing_scale)
        return said

    def inputs(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """The pipeline's arguments for a batch, one sample each."""
        inputs: dict[str, Any] = {"class_labels": [one.label for one in asked]}
        if self.typed:
            prompts = [self._prompt(one) for one in asked]
            inputs |= {"prompt": [prompt for prompt, _ in prompts], "subjects": [images for _, images in prompts]}
            inputs["fusing_scale"] = self.fusing_scale
        if self.negative_prompt is not None:
            inputs["negative_prompt"] = self.negative_prompt
        return inputs

    def _prompt(self, one: Asked) -> tuple[str | None, Any]:
        """Template and subjects' images of a sample."""
        return (None, None) if one.prompt is None else (one.prompt.template, one.prompt.subjects(self.images))
