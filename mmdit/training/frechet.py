"""Post-training on the Fréchet distance of features: the loss on the batches of training.

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
from mmdit.encoders.features import pooled
from mmdit.errors import UserError
from mmdit.flow.flow_matching import FlowDraw, Network
from mmdit.flow.frechet_loss import Reference, RunningMoments, frechet_distance
from mmdit.flow.prediction import Prediction
from mmdit.modalities import IMAGE
from mmdit.task import Role
from mmdit.training.config import FrechetConfig

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
        self._reference: Reference | None = None

    def chosen(self, roles: Tensor) -> Tensor:
        """Which samples of a whole batch, (B,) bool, are sampled; ``roles`` (B, M) as they are drawn."""
        joint = (roles == Role.GENERATE).all(1)
        return joint & (joint.cumsum(0) <= max(1, int(self.settings.share * len(roles))))

    def __call__(
        self,
        network: Network,
        conditioning: Conditioning,
        draw: FlowDraw,
        chosen: Tensor,
        mean_over_processes: Callable[[Tensor], Tensor],
        num_processes: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss, and the distance, which is NaN as long as nothing was sampled.

        ``chosen``: (B,) bool, of this process's samples; those of which the data lacks something are left out.
        """
        rows = (chosen.to(draw.roles.device) & (draw.roles == Role.GENERATE).all(1)).nonzero().flatten()
        sampled = rows if len(rows) else rows.new_zeros(1)  # all processes run the network equally often
        noise, prompts = draw.noise[sampled], conditioning.rows(sampled)
        images = self._images(self._sample(network, noise, draw.roles[sampled], prompts))
        found = self.running.add(pooled(self.features.to(noise.device), images)[: len(rows)], mean_over_processes)
        if found is None:
            return images.sum() * 0, images.new_tensor(float("nan"))
        distance = frechet_distance(found, self.reference(noise.device).to(found.mean.device))
        counts = self.running.count * num_processes >= self.settings.num_samples
        weight = self.settings.weight * counts / (distance.detach() + OFFSET)
        return (weight * distance).float(), distance.detach().float()

    def reference(self, device: torch.device) -> Reference:
        """The data's own pictures, as the VAE decodes them; computed once."""
        if self._reference is None:
            data = getattr(self.data, "latents", self.data)  # without captions and pictures, which are not looked at
            count = min(self.settings.num_samples, len(self.data))  # type: ignore[arg-type]
            chosen = [i * len(self.data) // count for i in range(count)]  # type: ignore[arg-type]
            features = []
            with torch.no_grad():
                for start in range(0, count, AT_A_TIME):
                    samples = [data[i] for i in chosen[start : start + AT_A_TIME]]
                    if moments := [each["moments"] for each in samples if each["present"][self.image]]:
                        latents = self.codec.latents_all(torch.stack(moments).float().to(device))
                        features.append(pooled(self.features.to(device), self._images(latents)))
            if not features:
                raise UserError(f"frechet: none of {count} samples of the training data has {IMAGE}")
            self._reference = Reference.of(torch.cat(features))
        return self._reference

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.running.state()

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from ``state``; None = of a run that had no such loss, so that moments begin now."""
        if state is not None:
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
