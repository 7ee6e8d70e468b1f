"""The tasks and controls that a report is made of, run batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdit.metrics.arrays import RunningMean
from mmdit.metrics.consistency import ConsistencyMetrics
from mmdit.metrics.frechet import FeatureStatistics, feature_distance
from mmdit.metrics.maps import MapMetrics, PreviousPairs, depth_space, first_of_kind, label_set, measured
from mmdit.metrics.samples import EvaluationSamples, GroundTruth
from mmdit.metrics.tasks import (
    TASKS,
    Maps,
    TaskRunner,
    can_condition,
    class_labels,
    pooled_features,
    reconstruct,
    to_tensor,
)
from mmdit.metrics.values import PeakSignalToNoise
from mmdit.modalities import IMAGE
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


class FeatureNetwork(Protocol):
    """Patch tokens (B, T, D) of RGB (B, 3, H, W) in [-1, 1]; ``pooled`` and ``classify`` are used if there."""

    def features(self, images: Tensor) -> Tensor: ...


class Evaluation:
    """One pass over the samples, batch by batch; ``evaluate`` says what the arguments mean.

    ``network`` is a ``FeatureNetwork`` or None; ``span`` is the depth range of the data in metres; ``tasks`` are some of
    ``TASKS``.
    """

    def __init__(
        self,
        pipe: MultimodalDiTPipeline,
        samples: EvaluationSamples,
        *,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        internal_guidance_scale: float | None = None,
        seed: int,
        network: Any,
        span: tuple[float, float],
        tasks: Sequence[str] = TASKS,
    ) -> None:
        self.wanted = tuple(tasks)
        self.pipe, self.info, self.seed, self.network, self.span = pipe, samples.info, seed, network, span
        self.num_inference_steps = num_inference_steps
        self.tasks = TaskRunner(
            pipe,
            num_inference_steps,
            guidance_scale=guidance_scale,
            internal_guidance_scale=internal_guidance_scale,
            seed=seed,
        )
        self.notes: list[str] = []
        self.labels, self.space = label_set(pipe), depth_space(pipe)
        self.depth: Any
        self.normal: Any
        self.labelled: Any
        self.depth, self.normal, self.labelled = (
            first_of_kind(pipe.codecs, kind) for kind in ("depth", "normal", "segmentation")
        )
        self.codecs = dict(pipe.codecs)
        names = measured(samples.modalities)
        if self.labelled in names and not self._same_classes():
            names.remove(self.labelled)
            del self.codecs[self.labelled]
            self.labels = None
            self.notes.append(f"{self.labelled} is not measured: the dataset's classes are not the model's")
        self.names = names
        self.has_rgb = IMAGE in samples.modalities
        self.conditions = [name for name in names if self.has_rgb and len(pipe.modalities) > 1]
        self.right, self.wrong, self.vae = self._maps(names), self._maps(names), self._maps(names)
        self.conditioned = {name: self._maps([name]) for name in self.conditions}
        self.consistency, self.wrong_consistency, self.vae_consistency, self.true_consistency = (
            ConsistencyMetrics(self.space, self.labels) for _ in range(4)
        )
        self.pairs, self.generated_pairs = PreviousPairs(), PreviousPairs()
        self.vae_psnr = PeakSignalToNoise()
        self.category, self.classified = RunningMean(), RunningMean()
        self.features = {name: FeatureStatistics() for name in ("real", "generated", "vae", "others")}
        self.num_samples = 0
        if network is None:
            self.notes.append("frechet_distance is null: no feature network; name one with teacher")

    def _same_classes(self) -> bool:
        if self.labels is None:
            return False
        ours = dict(zip(self.labels.ids.tolist(), self.labels.names, strict=True))
        theirs = self.info.segmentation_classes
        return theirs is None or {int(entry["id"]): str(entry["name"]) for entry in theirs} == ours

    def _maps(self, names: Iterable[str]) -> MapMetrics:
        return MapMetrics(names, self.codecs, self.span)

    def update(self, batch: Sequence[GroundTruth]) -> None:
        """Run every task on a batch of samples."""
        self.num_samples += len(batch)
        if "understanding" in self.wanted:
            self._understand([sample for sample in batch if IMAGE in sample.maps])
        for name in self.conditions if "conditioning" in self.wanted else ():
            self._condition(name, [sample for sample in batch if can_condition(self.pipe, name, sample)])
        if "generation" in self.wanted:
            self._generate(batch)
        self._reconstruct(batch)

    def compare(self, batch: Sequence[GroundTruth]) -> None:
        """Take other real images, whose Fréchet distance is what a perfect model would have with as many samples."""
        self._measure_images("others", [sample.maps[IMAGE] for sample in batch if IMAGE in sample.maps])

    def _understand(self, batch: Sequence[GroundTruth]) -> None:
        if not batch or len(self.pipe.modalities) < 2:
            return
        indices = [sample.index for sample in batch]
        predictions = self.tasks.understand([sample.maps[IMAGE] for sample in batch], indices)
        for prediction, truth in zip(predictions, batch, strict=True):
            self.right.update(prediction, truth)
            for other, its_truth in self.pairs.add(prediction, truth):
                self.wrong.update(other, its_truth)

    def _see_again(self, made: Sequence[Maps], batch: Sequence[GroundTruth]) -> list[Maps]:
        """What the model sees in RGB images that it made."""
        indices = [sample.index for sample in batch]
        return self.tasks.understand([maps[IMAGE] for maps in made], indices, noise="reestimation")

    def _condition(self, name: str, batch: Sequence[GroundTruth]) -> None:
        """X -> RGB, then X again from that RGB alone."""
        if not batch:
            return
        made = self.tasks.condition(name, batch)
        for prediction, truth in zip(self._see_again(made, batch), batch, strict=True):
            self.conditioned[name].update(prediction, truth)

    def _generate(self, batch: Sequence[GroundTruth]) -> None:
        labels = class_labels(self.pipe, batch, self.info.categories)
        generated = self.tasks.generate(labels, [sample.index for sample in batch])
        if self.labels is not None:
            for maps, sample, label in zip(generated, batch, labels, strict=True):
                wanted = self.labels.id_of(sample.category)
                if label is not None and wanted is not None:
                    self.category.update(self.labels.majority_object(maps[self.labelled]) == wanted)
        if IMAGE in self.pipe.modalities:
            self._measure_images("generated", [maps[IMAGE] for maps in generated])
            self._classify([maps[IMAGE] for maps in generated], batch, labels)
            if self.labels is not None:
                for maps, again in zip(generated, self._see_again(generated, batch), strict=True):
                    maps["reestimated"] = again[self.labelled]
        for maps in generated:
            self._agree(self.consistency, maps, maps)
            for other, own in self.generated_pairs.add(maps, maps):
                self._agree(self.wrong_consistency, other, own)

    def _agree(self, metrics: ConsistencyMetrics, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
        """Depth and labels of the first sample against normals and re-estimated labels of the second."""
        if self.depth is not None and self.normal is not None:
            metrics.update_geometry(first[self.depth], second[self.normal])
        if "reestimated" in second:
            metrics.update_segmentation(first[self.labelled], second["reestimated"])

    def _reconstruct(self, batch: Sequence[GroundTruth]) -> None:
        """Ground truth through the VAE and back, and through the codec alone."""
        for sample in batch:
            encoded = {}
            for name, array in sample.maps.items():
                if name in (*self.names, IMAGE) and can_condition(self.pipe, name, sample):
                    encoded[name] = self.pipe.codecs[name].encode(array)[None]
            rebuilt = {name: values[0] for name, values in reconstruct(self.pipe, encoded).items()}
            measurable = {name: sample.maps[name] for name in measured(rebuilt)}
            self.vae.update(rebuilt, GroundTruth(sample.index, sample.id, sample.category, measurable))
            if self.depth in rebuilt and self.normal in rebuilt:
                self.vae_consistency.update_geometry(rebuilt[self.depth], rebuilt[self.normal])
                relative = self.pipe.codecs[self.depth].decode(encoded[self.depth])[0]
                self.true_consistency.update_geometry(relative, sample.maps[self.normal])
            if IMAGE in rebuilt:
                self.vae_psnr.add(rebuilt[IMAGE], sample.maps[IMAGE])
                self._measure_images("real", [sample.maps[IMAGE]])
                self._measure_images("vae", [rebuilt[IMAGE]])

    def _measure_images(self, name: str, images: Sequence[np.ndarray]) -> None:
        if self.network is not None and images:
            self.features[name].update(pooled_features(self.network, images, self.pipe.execution_device))

    def _classify(self, images: Sequence[np.ndarray], batch: Sequence[GroundTruth], labels: Sequence[Any]) -> None:
        if self.network is None or not hasattr(self.network, "classify"):
            return
        with torch.no_grad():
            logits = self.network.classify(to_tensor(images).to(self.pipe.execution_device))
        if logits.shape[1] != len(self.info.categories):
            return
        for row, sample, label in zip(logits.argmax(dim=1).tolist(), batch, labels, strict=True):
            if label is not None:
                self.classified.update(self.info.categories[row] == sample.category)

    def compute(self) -> dict[str, Any]:
        """Close the shuffled pairs and return the report, with NaN where nothing was measured."""
        for other, truth in self.pairs.close():
            self.wrong.update(other, truth)
        for other, own in self.generated_pairs.close():
            self._agree(self.wrong_consistency, other, own)
        geometry = ("depth_normal_angle", "pixels_used")
        scale, internal = self.tasks.guidance["generation"]
        return {
            "understanding": self.right.compute(),
            "conditioning": {name: metrics.compute()[name] for name, metrics in self.conditioned.items()},
            "generation": {
                "frechet_distance": feature_distance(self.features["real"], self.features["generated"]),
                "category_accuracy": self.category.compute(),
                "classifier_accuracy": self.classified.compute(),
                "consistency": self.consistency.compute(),
            },
            "controls": {
                "shuffled_understanding": self.wrong.compute(),
                "shuffled_consistency": self.wrong_consistency.compute(),
                "vae_only": {
                    **self.vae.compute(),
                    IMAGE: {"psnr": self.vae_psnr.compute()["psnr"]},
                    "frechet_distance": feature_distance(self.features["real"], self.features["vae"]),
                    "consistency": {key: self.vae_consistency.compute()[key] for key in geometry},
                },
                "ground_truth": {"consistency": {key: self.true_consistency.compute()[key] for key in geometry}},
                "other_samples": {
                    "frechet_distance": feature_distance(self.features["real"], self.features["others"]),
                    "num_images": self.features["others"].count,
                },
            },
            "settings": {
                "num_samples": self.num_samples,
                # One number where the caller gave one, else what each task used.
                "num_inference_steps": self.num_inference_steps or {task: self.tasks.steps[task] for task in TASKS},
                "guidance_scale": scale,
                **({} if internal == 1 else {"internal_guidance_scale": internal}),
                "seed": self.seed,
                "scheduler": type(self.pipe.scheduler).__name__,
                "device": str(self.pipe.execution_device),
                "dtype": str(self.pipe.transformer.dtype).removeprefix("torch."),
                "depth_space": self.space,
                "depth_range": list(self.span),
                "notes": self.notes,
            },
            "timing": {"seconds_per_image": {task: mean.compute() for task, mean in self.tasks.seconds.items()}},
        }
