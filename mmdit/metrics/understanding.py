"""RGB -> depth, normals, segmentation, measured: what validation during training calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmdit.metrics.depth import DEPTH_RANGE
from mmdit.metrics.maps import PreviousPairs, batched, map_metrics, others, sample_generators, unstack
from mmdit.metrics.samples import GroundTruth
from mmdit.modalities import IMAGE
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


def understanding_report(
    pipe: MultimodalDiTPipeline,
    samples: Iterable[GroundTruth],
    num_inference_steps: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    depth_range: tuple[float, float] = DEPTH_RANGE,
) -> dict[str, Any]:
    """RGB -> depth, normals, segmentation: {"understanding": modality -> metrics, "shuffled_understanding": the same}.

    ``samples`` are ``EvaluationSamples`` or any ground truth of the model's size; those without RGB are passed over.
    """
    right, wrong, pairs = map_metrics(pipe, depth_range), map_metrics(pipe, depth_range), PreviousPairs()
    for batch in batched((sample for sample in samples if IMAGE in sample.maps), batch_size):
        images = [sample.maps[IMAGE] for sample in batch]
        predictions = understand(pipe, images, [sample.index for sample in batch], num_inference_steps, seed)
        for prediction, truth in zip(predictions, batch, strict=True):
            right.update(prediction, truth)
            for other, its_truth in pairs.add(prediction, truth):
                wrong.update(other, its_truth)
    for other, its_truth in pairs.close():
        wrong.update(other, its_truth)
    return {"understanding": right.compute(), "shuffled_understanding": wrong.compute()}


def understand(
    pipe: MultimodalDiTPipeline,
    images: Sequence[np.ndarray],
    indices: Sequence[int],
    num_inference_steps: int,
    seed: int,
) -> list[dict[str, np.ndarray]]:
    """RGB images uint8 (H, W, 3) -> one dict of maps per sample, with no label. ``indices`` choose the noise."""
    output = pipe(
        conditions={IMAGE: list(images)},
        num_inference_steps=num_inference_steps,
        guidance_scale=1.0,
        generator=sample_generators(seed, "understanding", indices),
        output_type="np",
    )
    return unstack(output, others(pipe.codecs), len(images))
