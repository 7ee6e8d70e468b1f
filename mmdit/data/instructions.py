"""Images, texts and what a multimodal LLM shall say next: captions, answers to questions, and prompts with images read out.

An example is images and one turn or more: a text, with ``IMAGE_MARK`` where images stand, and the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mmdit.data.lines import Rules
from mmdit.data.manifest import read_dataset_info, read_manifest
from mmdit.data.prompted import PromptDraw, crop, draw_prompt
from mmdit.data.prompts import PROMPTS, CaptionedSample, Entity, read_prompts
from mmdit.errors import UserError
from mmdit.modalities import IMAGE
from mmdit.modalities.rgb import read_picture
from mmdit.prompt import Prompt, mirror_text

IMAGE_MARK = "<image>"
READ_OUT = "that is"  # between a prompt with images and the same in words
MAX_TURNS = 4
CAPTION, QUESTION, PROMPT = KINDS = ("caption", "question", "prompt")

Questions = Callable[[CaptionedSample], list[tuple[str, str]]]


class Instructions(Dataset):
    """One example per sample, drawn anew at every position of the run.

    A batch holds, by sample: ``id``; ``kind``, of ``KINDS``; ``turns``, pairs (text, answer); ``pictures``, a list of PIL
    images, one per mark; ``names``, for each picture the phrases of the entities that it shows.

    A caption follows the image alone; questions follow the image one after the other, up to ``MAX_TURNS``, each with its
    answer; the prompt in words follows a prompt in which images (crops, or other pictures of the same subject) stand for
    words, as the LLM will read them later, the last without images too. Mirrored images have mirrored words.

    Args:
        root: dataset folder.
        split: with ``prompts.jsonl``.
        questions: what can be asked about a sample, with the answers.
        seed: of the draws.
        shares: of the kinds; they are scaled to sum to 1. Where nothing can be asked it is a caption.
        mirrored: append every sample once more, mirrored.
        allow_outside: accept paths outside ``root``.

    Raises:
        UserError: a split without captions or images.
    """

    takes_positions = True
    draw = PromptDraw("either", max_subjects=2, plain_share=0.25)

    def __init__(
        self,
        root: str | Path,
        split: str,
        questions: Questions,
        *,
        seed: int,
        shares: Sequence[float] = (0.3, 0.4, 0.3),
        mirrored: bool = False,
        allow_outside: bool = False,
    ) -> None:
        info = read_dataset_info(root, allow_outside=allow_outside)
        self.questions, self.seed, self.mirrored = questions, seed, mirrored
        self.shares = np.asarray(shares, dtype=float) / sum(shares)
        samples = read_prompts(Rules(info.root, split, None, None, allow_outside=allow_outside))
        files = {sample.id: sample.files.get(IMAGE) for sample in read_manifest(info, split)}
        self.samples = [sample for name, sample in samples.items() if files.get(name) is not None]
        self.files = files
        if not self.samples:
            raise UserError(
                f"{info.root / split / PROMPTS}: has no captions of samples with {IMAGE}; 'mmdit data render' and 'mmdit data "
                "prompts' write them"
            )

    def __len__(self) -> int:
        return len(self.samples) * (2 if self.mirrored else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(index, index)

    def read_batch(self, indices: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, Any]:
        """Read a batch; ``positions`` are those of the samples in the run, None = ``indices``."""
        pairs = zip(indices, indices if positions is None else positions, strict=True)
        examples = [self._example(*pair) for pair in pairs]
        return {key: [example[key] for example in examples] for key in examples[0]}

    @property
    def texts(self) -> list[str]:
        """Every text and answer that can come up, mirrored ones too."""
        found: dict[str, None] = {READ_OUT: None}
        for sample in self.samples:
            said = [*sample.captions, *(entity.phrase for entity in sample.entities)]
            said += [text for pair in self.questions(sample) for text in pair]
            found.update(dict.fromkeys([*said, *map(mirror_text, said)]))
        return list(found)

    def picture(self, sample: CaptionedSample) -> Image.Image:
        """The sample's own picture."""
        return Image.fromarray(self._pixels(sample))

    def read_out(self, sample: CaptionedSample, rng: np.random.Generator) -> tuple[tuple[str, str], list[Image.Image]]:
        """A prompt with images, drawn by ``rng``: (text, the same in words), and the images, none for plain text."""
        turns, pictures, _ = self._prompt(sample, self._pixels(sample), rng)
        return turns[0], pictures

    def _example(self, index: int, position: int) -> dict[str, Any]:
        view, row = divmod(index, len(self.samples))
        sample = self.samples[row]
        rng = np.random.default_rng([self.seed, position])
        kind = KINDS[int(rng.choice(len(KINDS), p=self.shares))]
        asked = self.questions(sample) if kind == QUESTION else []
        kind = CAPTION if kind == QUESTION and not asked else kind
        pixels = self._pixels(sample)
        if kind == PROMPT:
            turns, pictures, names = self._prompt(sample, pixels, rng)
        else:
            turns = [("", sample.captions[int(rng.integers(len(sample.captions)))])]
            if asked:
                turns = [asked[i] for i in rng.permutation(len(asked))[:MAX_TURNS]]
            if view == 1:
                turns = [(mirror_text(text), mirror_text(answer)) for text, answer in turns]
                pixels = np.ascontiguousarray(pixels[:, ::-1])
            turns[0] = (f"{IMAGE_MARK} {turns[0][0]}".strip(), turns[0][1])
            pictures, names = [Image.fromarray(pixels)], [" ".join(entity.phrase for entity in sample.entities)]
        return {"id": sample.id, "kind": kind, "turns": turns, "pictures": pictures, "names": names}

    def _pixels(self, sample: CaptionedSample) -> np.ndarray:
        path = self.files[sample.id]
        assert path is not None
        return read_picture(path)  # (H, W, 3)

    def _prompt(
        self, sample: CaptionedSample, pixels: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[tuple[str, str]], list[Image.Image], list[str]]:
        drawn = draw_prompt(sample, self.draw, rng, has_picture=True)
        prompt, entities = drawn.prompt, [drawn.entities[place] for place in drawn.shown]
        pictures = [_picture(entity, pixels, rng) for entity in entities]
        text = _replaced(prompt, [IMAGE_MARK] * len(entities))
        names = [entity.phrase for entity in entities]
        return [(f"{text} {READ_OUT}", _replaced(prompt, names))], pictures, names


def _picture(entity: Entity, pixels: np.ndarray, rng: np.random.Generator) -> Image.Image:
    if entity.images and (entity.box is None or rng.random() < 0.5):
        return Image.fromarray(read_picture(entity.images[int(rng.integers(len(entity.images)))]))
    return crop(pixels, entity)


def _replaced(prompt: Prompt, words: Sequence[str]) -> str:
    """The text with words of one's own in the place of each span."""
    text, end = "", 0
    for span, word in zip(prompt.spans, words, strict=True):
        text += prompt.text[end : span.start] + word
        end = span.end
    return text + prompt.text[end:]
