"""Post-training on the Fréchet distance of features: the loss on batches, and what of a configuration goes with it.

B samples of this process, N of them that are sampled, M modalities, D width of features.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmdit.conditioning import Conditioning
from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import load_teacher, pooled
from mmdit.errors import UserError
from mmdit.flow.flow_matching import FlowDraw, Network
from mmdit.flow.frechet_loss import Moments, RunningMoments, frechet_distance
from mmdit.flow.prediction import PREDICTIONS, Prediction
from mmdit.flow.schedulers import jumps, make_scheduler, set_timesteps
from mmdit.metrics.feature_networks import TEACHER_FOLDER
from mmdit.modalities import IMAGE
from mmdit.models.transformer import MultimodalDiT
from mmdit.task import Role
from mmdit.training.config import FrechetConfig, TrainingConfig
from mmdit.training.recipes.data import LatentData, pretrained_folder

AT_A_TIME = 32  # images of the data
OFFSET = 0.01  # added to the distance that the loss is divided by


class FrechetLoss:
    """How far the RGB that the network samples is from the data's, by a frozen network's pooled features.

    Of a batch, samples of which everything is generated are sampled from their noise in a few steps, with their prompts. The
    loss is the distance over itself, without a gradient: that of its logarithm, so ``weight`` means the same for all features.
    It counts from when the running moments hold ``num_samples`` samples.

    Args:
        features: images (N, 3, H, W) in [-1, 1] -> (N, D), with gradients.
        codec: decodes.
        data: the latents of training, which the distance is to; evenly spaced ones of them.
        image: number of RGB in the order of modalities.
        prediction: the network's.
        times: of the steps, from 1 to 0.
        tells_next: whether the network is told where a step leads (a flow map).
        settings: of the section.
    """

    def __init__(
        self,
        features: torch.nn.Module,
        codec: LatentCodec,
        data: Dataset[Any],
        *,
        image: int,
        prediction: Prediction,
        times: tuple[float, ...],
        tells_next: bool,
        settings: FrechetConfig,
    ) -> None:
        self.features, self.codec, self.data = features, codec, data
        self.image, self.prediction, self.times, self.tells_next = image, prediction, times, tells_next
        self.settings = settings
        self.running = RunningMoments(settings.decay)
        self._reference: Moments | None = None

    def __call__(
        self,
        network: Network,
        conditioning: Conditioning,
        draw: FlowDraw,
        mean_over_processes: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss, and the distance, which is NaN as long as nothing was sampled."""
        joint = (draw.roles == Role.GENERATE).all(1).nonzero().flatten()
        rows = joint[: max(1, int(self.settings.share * len(draw.roles)))]
        sampled = rows if len(rows) else joint.new_zeros(1)  # all processes run the network equally often
        noise, prompts = draw.noise[sampled], conditioning.rows(sampled)
        images = self._images(self._sample(network, noise, draw.roles[sampled], prompts))
        found = self.running.add(pooled(self.features.to(noise.device), images)[: len(rows)], mean_over_processes)
        if found is None:
            return images.sum() * 0, images.new_tensor(float("nan"))
        distance = frechet_distance(found, self.reference(noise.device).to(found.mean.device))
        counts = self.running.count >= self.settings.num_samples
        weight = self.settings.weight * counts / (distance.detach() + OFFSET)
        return (weight * distance).float(), distance.detach().float()

    def reference(self, device: torch.device) -> Moments:
        """The moments of the data's own pictures, as the VAE decodes them; computed once."""
        if self._reference is None:
            count = min(self.settings.num_samples, len(self.data))  # type: ignore[arg-type]
            chosen = [i * len(self.data) // count for i in range(count)]  # type: ignore[arg-type]
            features = []
            with torch.no_grad():
                for start in range(0, count, AT_A_TIME):
                    samples = [self.data[i] for i in chosen[start : start + AT_A_TIME]]
                    if moments := [each["moments"] for each in samples if each["present"][self.image]]:
                        latents = self.codec.latents_all(torch.stack(moments).float().to(device))
                        features.append(pooled(self.features.to(device), self._images(latents)))
            if not features:
                raise UserError(f"frechet: none of {count} samples of the training data has {IMAGE}")
            self._reference = Moments.of(torch.cat(features))
        return self._reference

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.running.state()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.running.load(state)

    def _sample(self, network: Network, x: Tensor, roles: Tensor, conditioning: Conditioning) -> Tensor:
        """Noise (N, M, C, H, W) -> latents, by Euler's steps."""
        for t, s in pairwise(self.times):
            now = x.new_full(roles.shape, t)
            where = {"timesteps_next": x.new_full(roles.shape, s)} if self.tells_next else {}
            output = network(x, now, roles, conditioning, **where).sample.to(x)
            x = x + (s - t) * self.prediction.to_velocity(output, x, now)
        return x

    def _images(self, latents: Tensor) -> Tensor:
        """RGB (N, 3, H, W) of latents (N, M, C, H, W)."""
        self.codec.vae.to(latents.device)
        return self.codec.decode(latents[:, self.image], IMAGE)


def frechet_loss(
    config: TrainingConfig, network: MultimodalDiT, data: LatentData, codec: LatentCodec, scheduler: str
) -> FrechetLoss | None:
    """What the section frechet says, None without it; ``scheduler``: name of what samples from the trained model.

    Raises:
        UserError: latents without RGB, no feature network or one for other tokens, or numbers that allow no loss.
    """
    settings = config.frechet
    if settings is None:
        return None
    names = list(data.modalities)
    if IMAGE not in names:
        raise UserError(f"frechet needs the modality {IMAGE!r}, the data have {', '.join(names)}")
    if not settings.decay < 1:
        raise UserError(f"frechet.decay is {settings.decay:g}: give a number from 0 to below 1")
    teacher = settings.teacher
    if teacher is None:
        own = None if config.model.pretrained is None else pretrained_folder(config.model.pretrained) / TEACHER_FOLDER
        if own is None or not own.is_dir():
            raise UserError(
                "frechet.teacher is null, and model.pretrained has no feature network of its own: give a folder or a timm model"
            )
        teacher = str(own)
    height, width = (side // network.config.patch_size for side in network.latent_shape)
    steps = make_scheduler(scheduler, config.objective.sampling_shift)
    set_timesteps(steps, settings.num_inference_steps)
    return FrechetLoss(
        load_teacher(teacher, (height, width)).eval().requires_grad_(False),
        codec,
        data.train,
        image=names.index(IMAGE),
        prediction=PREDICTIONS[config.objective.prediction],
        times=tuple(steps.sigmas.tolist()),
        tells_next=jumps(steps),
        settings=settings,
    )
