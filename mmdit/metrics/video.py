"""A model's maps of videos whose truth is known: accuracy and flicker, by how noise is drawn and what is done over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from mmdit.errors import UserError
from mmdit.metrics.depth import DEPTH_RANGE
from mmdit.metrics.flicker import Correspondence, FlickerMetrics, View
from mmdit.metrics.maps import batched, measured, metric_class
from mmdit.modalities import IMAGE
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.pipelines.video import Steady
from mmdit.storage.json_object import json_safe

Maps = dict[str, np.ndarray]
TRUTH = "truth"


@dataclass(frozen=True)
class TrueVideo:
    """views: of the F frames; maps: modality -> raw arrays (F, H, W[, C]), RGB among them, depth in metres."""

    views: Sequence[View]
    maps: Maps


@dataclass(frozen=True)
class Method:
    """shared: whether all frames have one noise; temporal: see ``mmdit.pipelines.video``."""

    shared: bool
    temporal: float

    NAMES: ClassVar[tuple[str, ...]] = ("independent", "shared", "temporal")

    @classmethod
    def named(cls, temporal: float) -> dict[str, Method]:
        """The three that are compared."""
        return dict(zip(cls.NAMES, (cls(False, 0.0), cls(True, 0.0), cls(True, temporal)), strict=True))

    def predict(
        self, pipe: MultimodalDiTPipeline, frames: np.ndarray, seed: int, num_inference_steps: int, batch_size: int
    ) -> Maps:
        """Understand frames (F, H, W, 3) uint8; returns raw arrays (F, ...) of all modalities."""
        steady, made = Steady(pipe.codecs, self.temporal), []
        for numbers in batched(range(len(frames)), batch_size):
            seeds = [seed if self.shared else seed + number for number in numbers]
            out: Any = pipe(
                conditions={IMAGE: [frames[number] for number in numbers]},
                seed=seeds,
                num_inference_steps=num_inference_steps,
                guidance_scale=1.0,
            )
            raw = {name: out.raw(name) for name in pipe.modalities}
            made += [steady({name: values[i] for name, values in raw.items()}) for i in range(len(numbers))]
        return {name: np.stack([each[name] for each in made]) for name in pipe.modalities}


class VideoScore:
    """Errors and flicker of one method, over videos."""

    def __init__(self, pipe: MultimodalDiTPipeline, names: Sequence[str]) -> None:
        self.codecs = {name: pipe.codecs[name] for name in names}
        self.errors = {name: metric_class(codec).for_codec(codec, DEPTH_RANGE) for name, codec in self.codecs.items()}
        self.flicker = {name: FlickerMetrics(codec) for name, codec in self.codecs.items()}

    def add(self, maps: Maps, video: TrueVideo, moves: Sequence[Correspondence]) -> None:
        """Add the maps of one video, in the spaces of the predictions."""
        for name, codec in self.codecs.items():
            for predicted, true in zip(maps[name], video.maps[name], strict=True):
                self.errors[name].add(predicted, true)
            self.flicker[name].add(maps[name], in_space(codec, video.maps[name]), video.views, moves)

    def compute(self) -> dict[str, Any]:
        """Modality -> metric -> value."""
        return {name: {**self.errors[name].compute(), **self.flicker[name].compute()} for name in self.codecs}


def in_space(codec: Any, raw: np.ndarray) -> np.ndarray:
    """Truth (F, H, W[, C]) as a perfect model would predict it."""
    return np.concatenate([codec.decode(codec.encode(each)[None]) for each in raw])


def evaluate_video(
    pipe: MultimodalDiTPipeline,
    videos: Iterator[TrueVideo],
    *,
    temporal: float,
    num_inference_steps: int = 1,
    seed: int = 0,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Measure the three methods on videos, and the truth's own change as the control.

    Args:
        pipe: a model that takes RGB.
        videos: of the model's size.
        temporal: of the third method.
        num_inference_steps: denoising steps.
        seed: of the noise; independent noise is drawn from it and the frame's number.
        batch_size: frames at a time; the figures do not depend on it.

    Returns:
        Method -> modality -> metric -> value, ready for JSON.

    Raises:
        UserError: a model without RGB, or labels that the model does not know.
    """
    if IMAGE not in pipe.modalities:
        raise UserError("the model takes no RGB, which it is to understand")
    methods = Method.named(temporal)
    scores: dict[str, VideoScore] = {}
    for video in videos:
        names = [name for name in measured(pipe.modalities) if name in video.maps]
        scores = scores or {name: VideoScore(pipe, names) for name in (*methods, TRUTH)}
        moves = [Correspondence.between(now, before) for before, now in pairwise(video.views)]
        for name, method in methods.items():
            maps = method.predict(pipe, video.maps[IMAGE], seed, num_inference_steps, batch_size)
            scores[name].add(maps, video, moves)
        truth = {name: in_space(pipe.codecs[name], video.maps[name]) for name in names}
        scores[TRUTH].add(truth, video, moves)
    result: dict[str, Any] = json_safe({name: score.compute() for name, score in scores.items()})
    return result
