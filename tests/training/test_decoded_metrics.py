from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmdit.encoders.codec import LatentCodec
from mmdit.training.config import PreviewConfig, TrainingConfig
from mmdit.training.decoded_metrics import DecodedMetrics
from mmdit.training.recipes import build_run
from mmdit.training.run import fit

Configure = Callable[..., TrainingConfig]


@pytest.fixture
def callback(tiny_config: Configure) -> DecodedMetrics:
    config = tiny_config(preview=PreviewConfig(num_samples=0, num_measured=5))
    return next(c for c in build_run(config).callbacks if isinstance(c, DecodedMetrics))


def test_numbers_against_numpy(callback: DecodedMetrics) -> None:
    values = callback.compute()
    pipe = callback.make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    codec = LatentCodec(pipe.vae, pipe.modalities)
    depth, angles, agree = [], [], []
    with torch.no_grad():
        for start in (0, 4):  # a batch of four, and one
            images = codec.decode_all(codec.latents_all(callback.moments[start : start + 4].float()))
            rgb = (images[:, 0].clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy()
            out = pipe(
                conditions={"rgb": list(rgb)},
                num_inference_steps=1,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            )
            truth = {name: pipe.codecs[name].decode(images[:, i]) for i, name in enumerate(pipe.modalities)}
            for ours, true in zip(out.depth, truth["depth"], strict=True):
                line = np.polyfit(ours.ravel(), true.ravel(), 1)
                depth.append(np.sqrt(np.mean((np.polyval(line, ours) - true) ** 2)))
            cosine = (np.asarray(out.normal) * truth["normal"]).sum(-1).clip(-1, 1)
            angles.append(np.degrees(np.arccos(cosine)).ravel())
            agree.append((np.asarray(out.segmentation) == truth["segmentation"]).ravel())
    assert values["understanding/depth/rmse"] == pytest.approx(np.mean(depth), rel=1e-4)
    assert values["understanding/normal/mean_angle"] == pytest.approx(np.concatenate(angles).mean(), rel=1e-3)
    assert values["understanding/segmentation/pixel_accuracy"] == pytest.approx(np.concatenate(agree).mean(), rel=1e-6)


def test_they_reach_tensorboard(tmp_path: Path, tiny_config: Configure) -> None:
    config = tiny_config(max_steps=2, preview=PreviewConfig(num_samples=1, num_inference_steps=1, num_measured=2))
    config.trainer = dataclasses.replace(config.trainer, validate_every=1)
    fit(build_run(config), config.trainer, config.ema, tmp_path, None)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    logged = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(logged["understanding/depth/rmse"]) == 2
    assert "understanding/normal/mean_angle" in logged
    assert {"previews/generated", "previews/understood"} <= set(events.Tags()["images"])
