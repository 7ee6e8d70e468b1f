"""Optimizers by name: AdamW (MMGen's) and Muon for the hidden matrices with AdamW for the rest.

Muon: K. Jordan et al., https://kellerjordan.github.io/posts/muon/; the scale 0.2 sqrt(max dim): arXiv 2502.16982, eq. 4.
torch.optim.Muon treats every parameter as one matrix and can't share an optimizer with AdamW; here fused projections
(q, k, v; the six adaLN vectors; the MLP's widths) are orthogonalised block by block, in batches of equal shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR

from mmdit.bounds import ClosedUnitInterval, Decay, Layers, NonNegativeInt, NonNegativeNumber, PositiveNumber
from mmdit.errors import UserError, unknown_name
from mmdit.training.sharding import shard_like, whole_tensor


def orthogonalize(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Replace each matrix of (N, rows, columns) by about U V^T of its SVD, by a quintic Newton–Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + (b g + c g²) x
    return x.mT if tall else x


def square_blocks(shape: torch.Size) -> tuple[int, int, int]:
    """(number of blocks, rows, columns): the long side of a fused matrix is split where it is a multiple of the short.

    A convolution (out, in, kernel height, kernel width) is one matrix of out rows.
    """
    rows, columns = shape[0], shape[1:].numel()
    short = min(rows, columns)
    if len(shape) > 2 or max(rows, columns) % short:
        return 1, rows, columns
    return max(rows, columns) // short, short, short


def whole_block(shape: torch.Size) -> tuple[int, int, int]:
    """(1, rows, columns): the matrix as it is.

    D x kD costs 2 k + 1 products of D x D a Newton–Schulz step, its k squares cost 3 k. The update has the same root mean
    square: 0.2 sqrt(max dim) is larger by sqrt(k), the entries of an orthogonal D x kD matrix are smaller by as much.
    """
    return 1, shape[0], shape[1:].numel()


# Name -> how a fused matrix is cut before it is orthogonalised: shape -> (number of blocks, rows, columns).
MUON_BLOCKS: dict[str, Callable[[torch.Size], tuple[int, int, int]]] = {"square": square_blocks, "whole": whole_block}


def _to_blocks(matrix: Tensor, cut: Callable[[torch.Size], tuple[int, int, int]] = square_blocks) -> Tensor:
    count, rows, columns = cut(matrix.shape)
    if matrix.ndim > 2 or matrix.shape[0] >= matrix.shape[1]:
        return matrix.reshape(count, rows, columns)
    return matrix.reshape(rows, count, columns).transpose(0, 1)


def _from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    if len(blocks) == 1 or shape[0] >= shape[1]:
        return blocks.reshape(shape)
    return blocks.transpose(0, 1).reshape(shape)


class MuonWithAdamW(Optimizer):
    """One optimizer, two rules: groups with ``muon=True`` hold hidden matrices, the others are updated by AdamW.

    Args:
        groups: parameter groups with keys ``params``, ``muon`` and ``lr``.
        momentum, nesterov, num_steps: Muon's.
        blocks: name in ``MUON_BLOCKS``: what of a fused matrix is orthogonalised apart.
        betas, eps: AdamW's.
        weight_decay: decoupled, in both.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        num_steps: int = 5,
        blocks: str = "square",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "momentum": momentum,
            "nesterov": nesterov,
            "num_steps": num_steps,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(groups, defaults)
        self._cut = MUON_BLOCKS[blocks]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._muon(group, params)
            elif params:
                self._adamw(group, params)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        updates: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"]
            assert p.grad is not None
            buffer.lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
            blocks = _to_blocks(
                whole_tensor(update), self._cut
            )  # where it is sharded: gathered, and the same on every process
            updates.setdefault((blocks.shape[1], blocks.shape[2]), []).append((p, blocks))
        for (rows, columns), members in updates.items():
            stacked = orthogonalize(torch.cat([blocks for _, blocks in members]), group["num_steps"])
            scale = 0.2 * math.sqrt(max(rows, columns))
            for (p, _), blocks in zip(members, stacked.split([len(b) for _, b in members]), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(shard_like(_from_blocks(blocks, p.shape), p), alpha=-group["lr"] * scale)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                zeros = torch.zeros_like
                self.state[p] = {"step": torch.tensor(0.0), "exp_avg": zeros(p), "exp_avg_sq": zeros(p)}
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [self.state[p]["step"] for p in params],
            foreach=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


@dataclass
class OptimizerConfig:
    """How the weights are updated.

    Args:
        name: "adamw" or "muon" (hidden matrices of the blocks by Muon, the rest by AdamW).
        lr: learning rate of AdamW's parameters.
        muon_lr: learning rate of Muon's matrices, times 0.2 sqrt(max dim).
        muon_steps: Newton–Schulz steps; the cost of Muon goes with them.
        muon_blocks: "square" (q, k and v, the adaLN vectors and the MLP's widths orthogonalised apart) or "whole" (each matrix
            as it is, which costs less).
        muon_except: parts of the names of hidden matrices that AdamW updates instead, such as ["modulation"].
        betas: AdamW's.
        weight_decay: decoupled weight decay.
        warmup_steps: linear warm-up from 0.
        schedule: "constant", "cosine" or "linear": from the peak to 0 over the last ``decay_share`` of the run.
        decay_share: share of the run over which the learning rate decays.
        decay_by: what the run is measured in, "steps" (trainer.max_steps) or "time" (trainer.max_hours, of this process): the
            decay then ends with the time, however fast the machine, and a run that is resumed has its time anew.
    """

    name: str = "adamw"
    lr: PositiveNumber = 1e-4
    muon_lr: PositiveNumber = 5e-3
    muon_steps: Layers = 5
    muon_blocks: str = "square"
    muon_except: list[str] = field(default_factory=list)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegativeNumber = 0.0
    warmup_steps: NonNegativeInt = 0
    schedule: str = "constant"
    decay_share: ClosedUnitInterval = 0.3
    decay_by: str = "steps"


MIN_HIDDEN_CHANNELS = 64


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Muon's parameters: 2-D weights inside a transformer's blocks, and convolutions between wide layers.

    The factors of a LoRA are not: it is their product that is a hidden matrix.
    """
    if parameter.ndim == 4:
        return min(parameter.shape[:2]) >= MIN_HIDDEN_CHANNELS and not name.startswith("projector.")
    return parameter.ndim == 2 and "blocks." in name and ".lora_" not in name


def _adamw(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def _muon(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [name for name, p in named if is_hidden_matrix(name, p)]
    for part in config.muon_except:
        if not part or not any(part in name for name in matrices):
            kinds = sorted({".".join(word for word in name.split(".") if not word.isdigit()) for name in matrices})
            raise unknown_name("part of a name in optimizer.muon_except", part, kinds)
    chosen = {name for name in matrices if not any(part in name for part in config.muon_except)}
    hidden = [p for name, p in named if name in chosen]
    rest = [p for name, p in named if name not in chosen]
    groups = [{"params": hidden, "muon": True, "lr": config.muon_lr}, {"params": rest, "muon": False, "lr": config.lr}]
    return MuonWithAdamW(
        [group for group in groups if group["params"]],
        num_steps=config.muon_steps,
        blocks=config.muon_blocks,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerConfig], Optimizer]] = {"adamw": _adamw, "muon": _muon}


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build an optimizer from ``OPTIMIZERS``. Raises UserError as ``check_optimizer``, or for a part that no name has."""
    check_optimizer(config)
    return OPTIMIZERS[config.name](model, config)


def _decay_factor(progress: float) -> dict[str, float]:
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}


DECAY_BY = ("steps", "time")


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise UserError for an unknown name or a bad rate: what needs no network to be found out."""
    for key, names in (
        ("name", OPTIMIZERS),
        ("schedule", _decay_factor(0.0)),
        ("decay_by", DECAY_BY),
        ("muon_blocks", MUON_BLOCKS),
    ):
        if getattr(config, key) not in names:
            raise unknown_name(f"optimizer.{key}", getattr(config, key), names)
    for key in ("lr", "muon_lr"):
        if not getattr(config, key) > 0:
            raise UserError(f"optimizer.{key} is {getattr(config, key)}: give a number > 0")


def learning_rate_factor(step: int, max_steps: int, config: OptimizerConfig, time_share: float = 0.0) -> float:
    """Factor on the learning rate at a step: linear warm-up, plateau, decay over the last ``decay_share``.

    ``time_share`` is the share of the run's time that has passed; the decay begins with whichever of the two ends comes first.
    """
    decay_steps = max(1, round(max_steps * config.decay_share))
    by_steps = (step - (max_steps - decay_steps)) / decay_steps
    by_time = (time_share - 1) / config.decay_share + 1 if config.decay_share else float(time_share >= 1)
    progress = min(1.0, max(0.0, by_steps, by_time))
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return warmup * _decay_factor(progress)[config.schedule]


def make_lr_scheduler(
    optimizer: Optimizer, config: OptimizerConfig, max_steps: int, time_share: Callable[[], float] = lambda: 0.0
) -> LambdaLR:
    """Build the per-step learning-rate schedule; ``time_share`` tells the share of the time that has passed (``decay_by``)."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, max_steps, config, time_share()))
