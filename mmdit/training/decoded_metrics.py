"""Errors of what the network understands, decoded to depth, normals and labels, in TensorBoard at each validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.metrics.arrays import RunningMean
from mmdit.metrics.depth import fit_scale_and_shift
from mmdit.metrics.maps import METRICS, MapMetric, MapMetrics, measured
from mmdit.metrics.samples import GroundTruth
from mmdit.modalities import IMAGE
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

# One value per line of the plot; `mmdit evaluate` has the rest.
NOT_LOGGED = frozenset({"within_11_25"})


class RelativeDepthError:
    """Streaming RMSE of relative depth, range [0, 1], after a least-squares scale and shift per image."""

    columns: ClassVar[tuple[str, ...]] = ("rmse",)
    higher_is_better: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self.mean = RunningMean()

    @classmethod
    def for_codec(cls, codec: Any, depth_range: tuple[float, float]) -> RelativeDepthError:
        return cls()

    def add(self, prediction: Any, truth: Any, *, objects: Any = None, category: str | None = None) -> None:
        """Add one image: relative maps (H, W) of one space."""
        scale, shift = fit_scale_and_shift(prediction, truth)
        error = scale * prediction + shift - truth
        self.mean.update(np.sqrt((error.astype(np.float64) ** 2).mean()))

    def compute(self) -> dict[str, float]:
        """Return the mean over images."""
        return {"rmse": self.mean.compute()}


# The truth is decoded too, so depth is relative on both sides.
DECODED_METRICS: dict[str, type[MapMetric]] = {**METRICS, "depth": RelativeDepthError}


class DecodedMetrics(Callback):
    """Logs the errors of RGB -> the rest in one step, with the averaged weights that validation runs with.

    The truth is what the VAE decodes from the stored latents, since raw files may be missing. So these numbers follow
    the transformer alone, and depth is measured in the codec's own range. ``mmdit evaluate`` measures against raw data.

    Args:
        make_pipeline: builds a pipeline around the network in training.
        moments: (N, M, 2C, h, w) of validation samples; their RGB is the condition.
        categories: N names, None = unknown.
        batch_size: samples that are predicted at once.
    """

    def __init__(
        self,
        make_pipeline: Callable[[], MultimodalDiTPipeline],
        moments: Tensor,
        categories: Sequence[str | None],
        batch_size: int,
    ) -> None:
        self.make_pipeline, self.batch_size = make_pipeline, batch_size
        self.moments, self.categories = moments, list(categories)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and trainer.logger is not None:
            trainer.logger.log_metrics(self.compute(), step=trainer.global_step)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """Return "understanding/<modality>/<metric>" -> value; depth's is the RMSE of relative depth, range [0, 1]."""
        pipe = self.make_pipeline()
        if IMAGE not in pipe.modalities or len(pipe.modalities) < 2:
            return {}
        pipe.set_progress_bar_config(disable=True)
        was_training = pipe.transformer.training
        pipe.transformer.eval()
        names = measured(pipe.modalities)
        maps = MapMetrics(names, pipe.codecs, table=DECODED_METRICS)
        for start in range(0, len(self.moments), self.batch_size):
            rows = slice(start, start + self.batch_size)
            truth, prediction = self._maps(pipe, names, self.moments[rows])
            for index, category in enumerate(self.categories[rows]):
                ours = {name: values[index] for name, values in prediction.items()}
                true = {name: values[index] for name, values in truth.items()}
                maps.update(ours, GroundTruth(start + index, str(start + index), category, true))
        pipe.transformer.train(was_training)
        computed = maps.compute()
        return {
            f"understanding/{name}/{column}": computed[name][column]
            for name, metric in maps.metrics.items()
            for column in metric.columns
            if column not in NOT_LOGGED and not np.isnan(computed[name][column])
        }

    def _maps(
        self, pipe: MultimodalDiTPipeline, names: Sequence[str], moments: Tensor
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(truth, prediction) of a batch: name -> (B, H, W, …) as the pipeline returns them."""
        codec = LatentCodec(pipe.vae, pipe.modalities)
        images = codec.decode_all(codec.latents_all(moments.to(pipe.transformer.device, torch.float32)))
        rows = list(pipe.modalities)
        truth = {name: pipe.codecs[name].decode(images[:, rows.index(name)]) for name in names}
        rgb = images[:, rows.index(IMAGE)].clamp(-1, 1)
        output: Any = pipe(
            conditions={IMAGE: list((rgb.float() / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy())},
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        return truth, {name: pipe.codecs[name].from_output(output[name]) for name in names}
