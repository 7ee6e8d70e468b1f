"""What recipe "transformer" needs for post-training on the Fréchet distance of features."""

from __future__ import annotations

import torch

from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import load_teacher
from mmdit.errors import UserError
from mmdit.flow.prediction import PREDICTIONS
from mmdit.flow.schedulers import jumps, make_scheduler, set_timesteps
from mmdit.metrics.feature_networks import TEACHER_FOLDER
from mmdit.modalities import IMAGE
from mmdit.models.transformer import MultimodalDiT
from mmdit.task import Role, TaskMixture
from mmdit.training.config import TrainingConfig
from mmdit.training.frechet import FrechetLoss
from mmdit.training.recipes.data import LatentData, pretrained_folder

_DRAWS = 10_000  # of tasks, in which each that a mixture has is met


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
    mixture = TaskMixture(config.task.mixture, names, config.task.absent_share)
    drawn = mixture(_DRAWS, torch.Generator().manual_seed(0))
    if not (drawn == Role.GENERATE).all(1).any():
        raise UserError(
            "frechet samples where everything is generated, which task.mixture never draws: give it the task joint"
        )
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
