"""Lightning modules: where networks, the diffusion process and data meet.

Everything random in a step comes from one generator seeded with (seed, batch number), so a run that was killed and
resumed takes the very same steps. B samples of this process, M modalities, C h w latent, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmdit.conditioning import EncodedPrompts
from mmdit.data.datamodule import numbered_generator
from mmdit.encoders.codec import LatentCodec
from mmdit.flow.objective import FlowDraw, Objective
from mmdit.launch import gathered
from mmdit.models.transformer import MultimodalDiT
from mmdit.storage.requests import Request
from mmdit.task import Role
from mmdit.training.alignment import NO_ALIGNMENT, AlignmentLoss
from mmdit.training.distillation import Distillation
from mmdit.training.ema import trained_weights_first
from mmdit.training.frechet import FrechetLoss
from mmdit.training.frozen import READ, Batch, FrozenNetworks
from mmdit.training.grounding import AttentionLoss
from mmdit.training.internal import InternalPredictions, once
from mmdit.training.meaning import network_meaning
from mmdit.training.optimizers import OptimizerConfig, make_lr_scheduler, make_optimizer
from mmdit.training.routing import TokenRouting
from mmdit.training.sharding import shard_module
from mmdit.training.stopping import StopGracefully

# A mean over a part of the batch has with it how many it is of: 0 where the batch has none of them.
Losses: TypeAlias = Mapping[str, Tensor | tuple[Tensor, int]]


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the step, the samples and the last good checkpoint."""


class SteppedModule(LightningModule):
    """A module whose step is a function of (weights, batch, seed, batch number).

    Args:
        network: what is trained.
        optimizer: how.
        seed: of the run.
        max_steps: optimizer steps of the whole run, for the learning-rate schedule.

    ``draws_for_all``: in training ``losses`` draws for the batch of all processes, and takes its own part.

    ``meaning``: what gives the weights their meaning (``mmdit.training.meaning``); recipes add what they know of it.
    """

    draws_for_all = False

    def __init__(self, network: nn.Module, *, optimizer: OptimizerConfig, seed: int, max_steps: int) -> None:
        super().__init__()
        self.network = network
        self.optimizer_config, self.seed, self.max_steps = optimizer, seed, max_steps
        self.batches_seen = 0
        self.meaning = network_meaning(network)
        self._validated: dict[str, list[float]] = {}  # name -> sum and count over this process's batches
        self.clock: StopGracefully | None = None  # ``fit`` sets it where the learning rate decays with the time

    @property
    def time_share(self) -> float | None:
        """The share of the run's time that has passed; None = steps are what it is measured in."""
        return None if self.clock is None else self.clock.time_share

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Named scalar losses of a batch; "loss" is minimised. ``generator``: a process's own, but for ``draws_for_all``."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        rank = 0 if self.draws_for_all else self._processes()[0]
        generator = numbered_generator(self.seed, self.batches_seen, rank)
        self.batches_seen += 1
        size = len(batch["id"])
        means = {name: mean for name, (mean, count) in _counted(self.losses(batch, generator), size).items() if count}
        loss = means["loss"]
        if not torch.isfinite(loss):
            raise NonFiniteLossError(self._non_finite_message(means, batch))
        self.log_dict({f"train/{name}": mean.detach() for name, mean in means.items()}, batch_size=size)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=size)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        generator = torch.Generator().manual_seed(batch_idx)
        losses = self.losses(batch, generator)
        for name, (mean, count) in _counted(losses, len(batch["id"])).items():
            if count:
                total = self._validated.setdefault(name, [0.0, 0])
                total[0] += float(mean) * count
                total[1] += count

    def on_validation_epoch_start(self) -> None:
        self._validated = {}

    def on_validation_epoch_end(self) -> None:
        """Log means over what all processes saw; a loss that one of them had nothing of is none of its."""
        parts = gathered(self._validated)
        for name in {name: None for part in parts for name in part}:
            totals, counts = zip(*(part[name] for part in parts if name in part), strict=True)
            self.log(f"val/{name}", sum(totals) / sum(counts), batch_size=1, sync_dist=True)

    def configure_model(self) -> None:
        """Shard the weights where the strategy does (``mmdit.training.sharding``)."""
        if self.device_mesh is not None:
            shard_module(self, self.network, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.network, self.optimizer_config)
        scheduler = make_lr_scheduler(optimizer, self.optimizer_config, self.max_steps, lambda: self.time_share or 0.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["meaning"] = Request(self.meaning).values

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = int(checkpoint["batches_seen"])
        trained_weights_first(checkpoint)

    def _non_finite_message(self, losses: Mapping[str, Tensor], batch: Batch) -> str:
        parts = ", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items())
        callback = self.trainer.checkpoint_callback
        last = getattr(callback, "last_saved_path", "") or "none yet"
        return (
            f"the loss is not finite at step {self.trainer.global_step} ({parts}); samples: {', '.join(batch['id'])}; "
            f"last good checkpoint: {last}. Lower the learning rate or look at these samples, then go on with --resume auto"
        )

    def _processes(self) -> tuple[int, int]:
        """(rank, number) of the processes that share a batch; validation is each process's own."""
        if self._trainer is None or not self.training:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _progress(self) -> float:
        """How much of the run is done, in [0, 1]; 0 outside of one."""
        if self._trainer is None:
            return 0.0
        return min(1.0, max(self.trainer.global_step / max(1, self.max_steps), self.time_share or 0.0))

    def _mean_over_processes(self, counts: Tensor) -> Tensor:
        if self._processes()[1] == 1:
            return counts
        return self.trainer.strategy.reduce(counts, reduce_op="mean")  # type: ignore[return-value]


def _counted(losses: Losses, size: int) -> dict[str, tuple[Tensor, int]]:
    return {name: value if isinstance(value, tuple) else (value, size) for name, value in losses.items()}


def repeated(batch: Batch, count: int) -> Batch:
    """Each sample ``count`` times, next to each other; what frozen encoders made of its prompt is not made again."""

    def part(value: Any) -> Any:
        if isinstance(value, EncodedPrompts):
            return value.repeat(count)
        if isinstance(value, Tensor):
            return value.repeat_interleave(count, 0)
        return [each for each in value for _ in range(count)]

    return {key: part(value) for key, value in batch.items() if key != READ}


def _generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """``generator`` on the CPU; on a GPU one seeded from it, for noise that takes the CPU longer to draw than a step does."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


NO_ATTENTION_LOSS = AttentionLoss()


class TransformerModule(SteppedModule):
    """Trains a ``MultimodalDiT`` on latents.

    The batch: ``moments`` (B, M, 2C, h, w), ``present`` (B, M) bool, ``id``, what the conditioner reads of it (a class label:
    ``category`` (B,); prompts: ``caption``, ``subjects`` and ``subject_masks``, see ``PromptedLatents``), and with a teacher
    ``features`` (B, T, D), or ``rgb`` (B, 3, H, W) in [-1, 1] for one that runs here.

    Args:
        network: the transformer.
        objective: the loss.
        frozen: the codec, which whitens latents; the teacher, None = the batch holds its features; the encoders of captions
            and subjects, None = the batch has none.
        alignment: the loss between tapped tokens and a teacher's features.
        hide_prompt_beside: modality; where it is a condition the prompt is hidden. None = nowhere.
        attention: the loss between attention to the prompt and where things are.
        routing: of tokens past blocks, in training; None = none.
        internal_weight: weight of the objective's loss on the middle head of a network that has one.
        frechet: the loss on the features of samples, in training; None = off.
        distillation: targets that trained models predict; None = those of the data.
        draws_per_sample: how often a training step takes each sample of its batch, see ``repeated``; not with an attention loss.
    """

    network: MultimodalDiT
    draws_for_all = True

    def __init__(
        self,
        network: MultimodalDiT,
        objective: Objective,
        *,
        frozen: FrozenNetworks,
        optimizer: OptimizerConfig,
        seed: int,
        max_steps: int,
        alignment: AlignmentLoss = NO_ALIGNMENT,
        hide_prompt_beside: str | None = None,
        attention: AttentionLoss = NO_ATTENTION_LOSS,
        internal_weight: float = 0.5,
        routing: TokenRouting | None = None,
        frechet: FrechetLoss | None = None,
        distillation: Distillation | None = None,
        draws_per_sample: int = 1,
    ) -> None:
        super().__init__(network, optimizer=optimizer, seed=seed, max_steps=max_steps)
        self.draws_per_sample = draws_per_sample
        self.objective, self.frozen = objective, frozen
        self.alignment, self.attention = alignment, attention
        self.hide_prompt_beside, self.internal_weight = hide_prompt_beside, internal_weight
        self.routing, self.frechet, self.distillation = routing, frechet, distillation

    @property
    def codec(self) -> LatentCodec:
        return self.frozen.codec

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        batch = self.frozen.encode_prompts(batch, self.device)
        if self.training and self.draws_per_sample > 1:
            batch = repeated(batch, self.draws_per_sample)
        moments = batch["moments"].float()  # (B, M, 2C, h, w)
        rank, world_size = self._processes()
        size, (m, c, h, w) = len(moments) * world_size, moments.shape[1:]
        draw = self.objective.draw(size, (m, c // 2, h, w), generator, _generator_on(moments.device, generator))
        sampled = None if self.frechet is None else self.frechet.chosen(draw.roles)[rank::world_size]
        draw = replace(draw.shard(rank, world_size), progress=self._progress())
        draw = draw.without_missing(batch["present"]).to(moments.device)
        p = self.network.config.patch_size
        route = None
        if self.routing is not None and self.training:
            kept = self.routing.draw(size, (h // p) * (w // p), generator)  # after all other draws: they stay the same
            route = self.routing.route(kept[rank::world_size].to(moments.device))

        clean = self.codec.latents_all(moments, noise=draw.posterior_noise)  # (B, M, C, h, w)
        prompt = self._prompt(batch, draw)
        conditioning = self.network.conditioner(prompt)
        network = partial(
            self.network.__call__,  # the same as self.network, which mypy takes for no function
            output_alignment=self.alignment.weight > 0,
            output_attention=self.attention.blocks,
            route=route,
        )
        asked: dict[str, Any] = {}
        if self.objective.needs_null:
            with torch.no_grad():
                asked["null"] = self.network.conditioner.null(len(clean)).to(moments.device)
        if self.distillation is not None:
            told = {"prompt": prompt, "conditioning": conditioning, "shows_ground": batch.get("shows_ground")}
            asked["teach"] = once(partial(self.distillation, **told))
        recorded = InternalPredictions(network)
        head = self.network.internal_head
        has_internal = head is not None and any(weight.requires_grad for weight in head.parameters())
        inputs = (clean, conditioning, draw, self._mean_over_processes)
        step = self.objective(recorded if has_internal else network, *inputs, **asked)
        losses = dict(step.losses)
        if has_internal:
            losses["internal"] = self.objective(recorded.replay, *inputs, **asked).losses["loss"]
            losses["loss"] = losses["loss"] + self.internal_weight * losses["internal"]
        if self.alignment.weight > 0:
            tap = self.network.config.alignment_depth
            losses["alignment"] = self.alignment(
                step.network_output.alignment,
                batch,
                roles=draw.roles,
                frozen=self.frozen,
                patch_size=p,
                kept=route.kept if route is not None and route.is_sparse_behind(tap) else None,
                mean_over_processes=self._mean_over_processes,
            )
            losses["loss"] = losses["loss"] + self.alignment.weight * losses["alignment"]
        if step.network_output.attention is not None:
            losses["attention"] = self.attention(
                step.network_output.attention,
                batch,
                conditioning,
                frozen=self.frozen,
                grid=(h // p, w // p),
                mean_over_processes=self._mean_over_processes,
            )
            losses["loss"] = losses["loss"] + self.attention.weight * losses["attention"]
        if self.frechet is not None and sampled is not None and self.training:
            own, losses["frechet"] = self.frechet(
                self.network.__call__, conditioning, draw, sampled, self._mean_over_processes, world_size
            )
            losses["loss"] = losses["loss"] + own
        return losses

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.frechet is not None:
            checkpoint["frechet"] = self.frechet.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.frechet is not None:
            self.frechet.load(checkpoint.get("frechet"))

    def _prompt(self, batch: Batch, draw: FlowDraw) -> Any:
        """The prompts of the encoded batch, dropped at random in training, and beside a condition where configured."""
        conditioner, modalities = self.network.conditioner, list(self.network.config.modalities)
        prompt = conditioner.of_batch(batch)
        if self.training and draw.prompt_draw is not None:
            prompt = conditioner.drop(prompt, draw.prompt_draw)
        if self.hide_prompt_beside in modalities:
            prompt = conditioner.without(
                prompt, draw.roles[:, modalities.index(self.hide_prompt_beside)] == Role.CONDITION
            )
        return prompt
