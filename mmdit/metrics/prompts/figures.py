"""What the figures of prompts are drawn from: pictures for each fusing scale, styles by pictures, the map of pseudo-words.

UMM-Diffusion (arXiv 2303.09319) shows them: figure 7, the fusing scale α; styles by words and a picture; and by t-SNE (van der
Maaten and Hinton, 2008) that the pseudo-words of one class lie together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.metrics.arrays import Array
from mmdit.metrics.prompts.cases import PromptCase, PromptedSplit
from mmdit.metrics.prompts.kinds import KINDS, Contradiction, Ground
from mmdit.metrics.prompts.views import read_shown
from mmdit.metrics.tasks import TaskRunner
from mmdit.modalities import IMAGE
from mmdit.modalities.rgb import read_picture

NUM_CATEGORIES = 4
_BATCH = 32


@dataclass(frozen=True)
class ShownPrompt:
    """One prompt: its words, the picture in it, and what the model makes of them for each scale, uint8 (H, W, 3)."""

    words: str
    reference: Array
    made: tuple[Array, ...]


def fusing_pictures(tasks: TaskRunner, split: PromptedSplit, scales: Sequence[float], count: int) -> list[ShownPrompt]:
    """Prompts whose words contradict the picture, with the same noise for every scale."""
    cases = Contradiction().cases(split, count)
    if not cases:
        raise UserError("the split's captions have no subject with another picture: render with --composition subjects")
    return _drawn(tasks, cases, "prompts.fusing", scales)


def ground_pictures(tasks: TaskRunner, split: PromptedSplit, count: int) -> dict[str, list[ShownPrompt]]:
    """A scene's style, a floor and a wall by pictures, as the evaluation asks for them: name -> prompts.

    Without those of which the split has none.
    """
    drawn = {}
    for name, kind in KINDS.items():
        if isinstance(kind, Ground) and (cases := kind.cases(split, count)):
            drawn[kind.name] = _drawn(tasks, cases, f"prompts.{name}", [None])
    return drawn


def _drawn(
    tasks: TaskRunner, cases: Sequence[PromptCase], noise: str, scales: Sequence[float | None]
) -> list[ShownPrompt]:
    made = [
        tasks.prompt(
            [case.template for case in cases],
            range(len(cases)),
            noise=noise,
            subjects=[case.subjects for case in cases],
            fusing_scale=scale,
        )
        for scale in scales
    ]
    return [
        ShownPrompt(
            case.wording.replace("{", "").replace("}", ""),
            read_shown(case.references[0]),
            tuple(pictures[row][IMAGE] for pictures in made),
        )
        for row, case in enumerate(cases)
    ]


@dataclass(frozen=True)
class PseudoWords:
    """Pseudo-words of subjects: vectors (N, W), the category of each, and the picture that it was made of."""

    vectors: Array
    categories: tuple[str, ...]
    files: tuple[Path, ...]


@torch.no_grad()
def pseudo_words(pipe: Any, split: PromptedSplit, categories: Sequence[str] | None = None) -> PseudoWords:
    """The pseudo-word of every subject's clearest picture, of some categories.

    Args:
        pipe: a pipeline whose conditioner makes pseudo-words of pictures ("tiue").
        split: whose subjects.
        categories: None = the four with the most subjects, of equals the first.

    Raises:
        UserError: another conditioner, a model without an image encoder, an unknown category, or too few subjects.
    """
    conditioner = pipe.transformer.conditioner
    encoder = getattr(pipe.prompt_encoder(), "subjects", None)
    if not hasattr(conditioner, "pseudo_word") or encoder is None:
        raise UserError(
            "this model makes no pseudo-words of pictures: give one with conditioner 'tiue' and an image encoder"
        )
    found: dict[str, dict[Path, None]] = {name: {} for name in split.categories}
    for _, _, objects in split:
        for one in objects:
            if one.entity.images:
                found[one.category][one.entity.images[0]] = None
    if categories is None:
        ranked = sorted(split.categories, key=lambda name: -len(found[name]))  # a stable sort
        categories = [name for name in ranked if found[name]][:NUM_CATEGORIES]
    for name in categories:
        if not found.get(name):
            known = ", ".join(name for name in found if found[name]) or "none"
            raise UserError(
                f"category {name!r} has no subject with another picture in this split: those with one are {known}"
            )
    listed = [(name, path) for name in categories for path in found[name]]
    if len(listed) < 4:
        raise UserError(f"{len(listed)} subjects have another picture in this split: a map needs at least 4")
    weight = next(conditioner.parameters())
    vectors = []
    for start in range(0, len(listed), _BATCH):
        pictures = [Image.fromarray(read_picture(path)) for _, path in listed[start : start + _BATCH]]
        vectors.append(conditioner.pseudo_word(encoder(pictures).to(weight)).float().cpu().numpy())
    return PseudoWords(np.concatenate(vectors), tuple(name for name, _ in listed), tuple(path for _, path in listed))


def map_in_plane(vectors: Array, seed: int = 0) -> Array:
    """t-SNE of vectors (N, W) -> (N, 2). Raises UserError where scikit-learn is not installed."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError("the map of pseudo-words needs scikit-learn: pip install 'multimodal-dit[metrics]'") from error
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors.astype(np.float64))


def neighbours_alike(vectors: Array, categories: Sequence[str]) -> float:
    """Share of pseudo-words (N, W) whose nearest other one, by cosine, is of the same category: the map as a number."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    nearest = likeness.argmax(axis=1)
    return float(np.mean([categories[one] == categories[other] for one, other in enumerate(nearest)]))
