"""Errors of what the network understands, decoded to depth, normals and labels, in TensorBoard at each validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.metrics.arrays import RunningMean
from mmdit.metrics.depth import fit_scale_and_shift
from mmdit.metrics.maps import MEASURED, MapMetrics, label_set
from mmdit.metrics.samples import GroundTruth
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

# One value per line of the plot; `mmdit evaluate` has the rest.
LOGGED = {
    "normal": ("mean_angle", "mean_angle_objects"),
    "segmentation": ("miou", "pixel_accuracy", "object_iou", "main_object_accuracy"),
}


class DecodedMetrics(Callback):
    """Logs the errors of RGB -> the rest in one step, with the averaged weights that validation runs with.

    The truth is what the VAE decodes from the stored latents, for raw files need not be there: so these numbers follow
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
        if "rgb" not in pipe.modalities or len(pipe.modalities) < 2:
            return {}
        pipe.set_progress_bar_config(disable=True)
        was_training = pipe.transformer.training
        pipe.transformer.eval()
        names = [name for name in MEASURED if name in pipe.modalities]
        maps = MapMetrics((name for name in names if name != "depth"), labels=label_set(pipe))
        depth = RunningMean()
        for start in range(0, len(self.moments), self.batch_size):
            rows = slice(start, start + self.batch_size)
            truth, prediction = self._maps(pipe, names, self.moments[rows])
            for index, category in enumerate(self.categories[rows]):
                ours = {name: values[index] for name, values in prediction.items()}
                true = {name: values[index] for name, values in truth.items()}
                maps.update(ours, GroundTruth(start + index, str(start + index), category, true))
                if "depth" in names:
                    scale, shift = fit_scale_and_shift(ours["depth"], true["depth"])
                    error = scale * ours["depth"] + shift - true["depth"]
                    depth.update(np.sqrt((error.astype(np.float64) ** 2).mean()))
        pipe.transformer.train(was_training)
        computed = maps.compute()
        logged = {
            f"understanding/{name}/{metric}": computed[name][metric]
            for name, metrics in LOGGED.items()
            for metric in metrics
            if name in computed and not np.isnan(computed[name][metric])
        }
        return logged | ({"understanding/depth/rmse": depth.compute()} if "depth" in names else {})

    def _maps(
        self, pipe: MultimodalDiTPipeline, names: Sequence[str], moments: Tensor
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(truth, prediction) of a batch: name -> (B, H, W, …) as the pipeline returns them."""
        codec = LatentCodec(pipe.vae, pipe.modalities)
        images = codec.decode_all(codec.latents_all(moments.to(pipe.transformer.device, torch.float32)))
        rows = list(pipe.modalities)
        truth = {name: pipe.codecs[name].decode(images[:, rows.index(name)]) for name in names}
        rgb = images[:, rows.index("rgb")].clamp(-1, 1)
        output: Any = pipe(
            conditions={"rgb": list((rgb.float() / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy())},
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        return truth, {name: np.asarray(output[name]) for name in names}
