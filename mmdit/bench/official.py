"""The official MMGen code, from a checkout (github.com/jiepengwang/MMGen, MIT), on the same work as ours, to compare speeds.

Its network, loss, posterior sampling and samplers are imported from the checkout; only the lines of its training loop around
them (train.py: optimizer, clipping, logged losses, averaging) are written out here, because it has no function for them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.bench.speed import peak_memory, reset_peak_memory, synchronize
from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT

LOSS_WEIGHTS = (1.0, 0.2, 0.1, 0.1)
ALIGNMENT_WEIGHT = 0.5


class OfficialCode:
    """The files of a checkout that are timed.

    Args:
        checkout: folder of the repository.

    Raises:
        UserError: a folder that lacks one of the files, or one that can't be imported.
    """

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.network = self._load("models/sit.py")
        self.loss = self._load("loss.py")
        self.samplers = self._load("samplers.py")
        self.latents = self._load("utils/latents.py")

    def _load(self, name: str) -> ModuleType:
        path = self.checkout / name
        if not path.is_file():
            raise UserError(f"--against {self.checkout}: no checkout of the official MMGen code, it lacks {name}")
        spec = importlib.util.spec_from_file_location(f"official_mmgen_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever somebody else's file does
            raise UserError(f"--against: {path} can't be imported: {type(error).__name__}: {error}") from error
        return module

    def make_network(self, ours: MultimodalDiT, feature_dim: int) -> nn.Module:
        """Build its network with the sizes of ours, four modalities and the flags of its ImageNet script."""
        config = ours.config
        if len(config.modalities) != 4 or config.in_channels != 4:
            raise UserError("--against: the official code is for four modalities of four latent channels each")
        return self.network.SiT(
            input_size=config.sample_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            encoder_depth=min(config.alignment_depth or 8, config.depth),
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            num_classes=config.num_classes,
            z_dims=[feature_dim],
            projector_dim=config.alignment_hidden_size,
            num_tasks=4,
            is_mmcat_diff=True,
            use_decouple_task=True,
            use_taskcond_emb=True,
            fused_attn=True,
            qk_norm=False,
        )

    def make_loss(self) -> Any:
        """Its loss with the flags of its ImageNet script."""
        with contextlib.redirect_stdout(io.StringIO()):
            return self.loss.SILoss(
                use_decouple_task=True,
                num_tasks=4,
                ratio_train_onlyrgb=0.5,
                use_quater_mixing=True,
                use_decouple_rand1=True,
            )


def time_training(
    code: OfficialCode,
    ours: MultimodalDiT,
    batches: Iterable[dict[str, Any]],
    *,
    feature_dim: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    num_steps: int,
    num_warmup: int,
) -> dict[str, float]:
    """Time its training step: {"seconds_per_step", "peak_memory_gib"}.

    Args:
        code: the checkout.
        ours: gives the sizes.
        batches: of ``LatentShards``, with features, at least ``num_steps + num_warmup``.
        feature_dim: width of the teacher's features.
        device, amp_dtype: where, and the dtype under autocast, None = float32.
        num_steps, num_warmup: timed and untimed steps.
    """
    network = code.make_network(ours, feature_dim).to(device).train()
    average = deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, eps=1e-8)
    loss = code.make_loss()
    began = time.perf_counter()
    for step, batch in enumerate(batches):
        if step == num_warmup:
            synchronize(device)
            reset_peak_memory(device)
            began = time.perf_counter()
        if step == num_steps + num_warmup:
            break
        _training_step(
            code,
            network,
            average,
            optimizer=optimizer,
            loss_function=loss,
            batch=batch,
            device=device,
            amp_dtype=amp_dtype,
        )
    synchronize(device)
    return {"seconds_per_step": (time.perf_counter() - began) / num_steps, "peak_memory_gib": peak_memory(device)}


def _training_step(
    code: OfficialCode,
    network: nn.Module,
    average: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    loss_function: Any,
    batch: dict[str, Any],
    device: torch.device,
    amp_dtype: torch.dtype | None,
) -> None:
    mean, logvar = batch["moments"].to(device).float().flatten(1, 2).unflatten(1, (4, 2, -1)).unbind(2)
    moments = torch.stack([mean.flatten(1, 2), (logvar.flatten(1, 2) / 2).exp()], dim=-1)  # (B, 4 C, h, w, 2)
    x = code.latents.sample_posterior(moments, 0.18215, 0.0, is_mmcat_diff=True, num_tasks=4)
    features, labels = batch["features"].to(device).float(), batch["category"].to(device)
    with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        errors, alignment, mask = loss_function(network, x, {"y": labels}, zs=[features])
    # Logged values are read in every step, as there.
    total = x.new_zeros(())
    rows = mask[..., 0, 0].bool().chunk(4, dim=1)
    for weight, error, row in zip(LOSS_WEIGHTS, errors.chunk(4, dim=1), rows, strict=True):
        per_sample = error.flatten(1).mean(1)[row[..., 0]]
        if per_sample.numel():
            total = total + weight * per_sample.mean()
            per_sample.mean().item()
    total.item()
    (total + ALIGNMENT_WEIGHT * alignment.mean()).backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        targets = dict(average.named_parameters())
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                targets[name].mul_(0.9999).add_(parameter.data, alpha=1 - 0.9999)


def sampler(
    code: OfficialCode, ours: MultimodalDiT, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, Tensor, int, float], Tensor]:
    """Return a function (noise (B, M, C, h, w), class ids (B,), steps, guidance scale) -> latents, by its Euler sampler."""
    network = code.make_network(ours, 768).to(device, dtype).eval()

    def sample(noise: Tensor, labels: Tensor, num_steps: int, guidance_scale: float) -> Tensor:
        flat = noise.flatten(1, 2).to(device, dtype)
        return code.samplers.euler_sampler(
            network, flat, labels.to(device), num_steps=num_steps, cfg_scale=guidance_scale, use_decouple_task=True
        )

    return sample
