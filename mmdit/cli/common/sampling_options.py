"""Options of the commands that make samples: the model, how it samples, what is asked for in words, and what is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmdit.bounds import Batch, ClosedUnitInterval, InferenceSteps, NonNegativeNumber, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName, one_or_none
from mmdit.errors import UserError

if TYPE_CHECKING:
    from mmdit.cli.common.sampling import SamplingRun
    from mmdit.cli.common.words import Words


@dataclass(frozen=True)
class WordOptions:
    """What is asked for in words.

    Args:
        category: Name (or id) of a category; by default none.
        prompt: A text; see mmdit generate, also for the next three.
        subject: WORD=FILE or FILE, the image of a subject that the prompt marks; repeat it for others.
        negative_prompt: A text that guidance leads away from.
        fusing_scale: With subjects, 0 = what the text says to 1 = what the images show.
    """

    category: str | None = None
    prompt: str | None = None
    subject: list[str] | None = None
    negative_prompt: str | None = None
    fusing_scale: ClosedUnitInterval | None = None

    def read(self) -> Words:
        """The words and the subjects' images. Raises UserError as ``Words``."""
        from mmdit.cli.common.words import Words

        categories, prompts = one_or_none(self.category), one_or_none(self.prompt)
        return Words(categories, prompts, self.subject, self.negative_prompt, self.fusing_scale)


@dataclass(frozen=True)
class ResultOptions:
    """What is written, and how many samples at a time.

    Args:
        exr: Write depth and normals as OpenEXR too, float32; needs pip install 'multimodal-dit[exr]'.
        overwrite: Replace results of other requests that have the same name.
        batch_size: Samples at a time; results depend on it only by rounding.
    """

    exr: bool = False
    overwrite: bool = False
    batch_size: Batch = 8


@dataclass(frozen=True)
class ModelOptions:
    """The model.

    Args:
        model: A bundled model's name, a pipeline folder, or a Hub id.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
    """

    model: str = BUNDLED_MODEL
    lora: str | None = None
    lora_scale: NonNegativeNumber = 1.0


@dataclass(frozen=True)
class SamplingOptions(ModelOptions):
    """The model, and how it samples.

    Args:
        num_inference_steps: Denoising steps; null = the model's own, 25 where it names none.
        guidance_scale: How strongly category and prompt are followed, where one is given; 1 = no guidance; null = the model's
            own, 2 where it names none.
        internal_guidance_scale: How far from what the model's middle block predicts, at no evaluation more, where it has a head
            there; 1 = off; null = the model's own, or off where guidance_scale is given.
        scheduler: euler, heun, unipc, dpmsolver++, euler_maruyama, or flow_map for a model that learned its steps; by default
            the model's own.
        seed: Seed of the first sample.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """

    num_inference_steps: InferenceSteps | None = None
    guidance_scale: NonNegativeNumber | None = None
    internal_guidance_scale: NonNegativeNumber | None = None
    scheduler: str | None = None
    seed: Seed = 0
    device: str = "auto"
    dtype: DtypeName = "auto"

    def start(
        self, command: str, words: Words, output: Path, results: ResultOptions, *, understanding: bool = False
    ) -> SamplingRun:
        """Load the model for samples of ``words``; see ``SamplingRun``.

        Raises:
            UserError: guidance with nothing that it could follow, or what ``SamplingRun`` refuses.
        """
        from mmdit.cli.common.sampling import SamplingRun

        if not words.asks and self.guidance_scale not in (None, 1):
            raise UserError(
                f"--guidance_scale {self.guidance_scale:g}: neither category nor prompt is given that it could follow: give "
                "one, or leave it out"
            )
        run = SamplingRun(
            command,
            self.model,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            internal_guidance_scale=self.internal_guidance_scale,
            understanding=understanding,
            prompted=bool(words.typed or words.negative_prompt),
            asks=words.asks,
            scheduler=self.scheduler,
            device=self.device,
            dtype=self.dtype,
            output=output,
            lora=self.lora,
            lora_scale=self.lora_scale,
            **vars(results),
        )
        words.check_guidance(run.guidance_scale)
        return run
