"""Runs trainings one after another in a process of a group: python distributed_worker.py '[{"strategy": …, "output": …}]'."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

from mmdit.training.config import (
    AlignmentConfig,
    DataConfig,
    EMAConfig,
    FrechetConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    PromptsConfig,
    RoutingConfig,
    TaskConfig,
    TrainerConfig,
    TrainingConfig,
)
from mmdit.training.recipes import build_run
from mmdit.training.run import fit
from mmdit.training.sharding import whole_tensors


class FirstGradients(Callback):
    """Writes the gradients of the first optimizer step, before they are clipped, to ``gradients.safetensors``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gradients.safetensors"

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if trainer.global_step == 0:
            found = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
            whole = whole_tensors(found, keep=trainer.is_global_zero)
            if trainer.is_global_zero:
                save_file({name: value.contiguous() for name, value in whole.items()}, self.path)


def train(
    output: str,
    strategy: str = "auto",
    devices: int = 1,
    precision: str = "32-true",
    source: str | None = None,
    prompts: list[str] | None = None,
    interleaved: bool = False,
    steps: bool = False,
    teacher: str | None = None,
) -> None:
    """Two steps of two accumulated batches, with a checkpoint after one; or the last one, from ``source``'s checkpoint.

    Everything that touches the weights is on: Muon and AdamW, the average, clipping, alignment, a head on a middle block, routing
    of tokens, activation checkpointing. ``prompts``: the folders of ``PromptFolders``, data, latents and encoders; then without
    the three of these that are about the image. ``interleaved``: read by a
    multimodal LLM, in joint attention and with the attention-mask loss; most batches have samples without a prompt.
    ``steps``: with the objective of few steps, and guidance in the network; in most batches one process has no sample that steps.
    ``teacher``: a folder, for the loss on the features of samples; of each batch one process samples one, the other none.
    """
    model = ModelConfig(size="debug", qk_norm="rms_norm", position_embedding="rope", gradient_checkpointing=True)
    data, settings, alignment, routing = DataConfig(batch_size=4), None, None, None
    if prompts is None:
        model.internal_guidance_depth = 1
        alignment = AlignmentConfig(depth=1, projector="conv", spatial_norm=0.6, teacher="latents")
        routing = RoutingConfig(share=0.5, first=2, last=2)
    else:
        model.block, model.conditioner = "cross", "tiue"
        data = DataConfig(path=prompts[1], batch_size=4, val_split=None)
        settings = PromptsConfig(prompts[0], prompts[2], label_share=0.5, label_alone_share=0.5)
        if interleaved:
            model.block, model.conditioner = "joint", "interleaved"
            settings.attention_loss_weight, settings.label_share, settings.label_alone_share = 0.5, 1.0, 0.8
    objective = ObjectiveConfig(prediction="sample", timesteps="mixed")
    if steps:
        model.second_time, routing = True, None
        objective.name, objective.settings = "solution_flow", {"guidance_scale": 2.0, "guidance_mix": 0.5}
    task, frechet = TaskConfig(), None
    if teacher is not None:
        task, routing = TaskConfig({"joint": 1.0}, absent_share=0.0), None
        frechet = FrechetConfig(weight=10.0, teacher=teacher, share=0.25, decay=0.5, num_samples=1)
    config = TrainingConfig(
        model=model,
        data=data,
        prompts=settings,
        task=task,
        frechet=frechet,
        objective=objective,
        alignment=alignment,
        routing=routing,
        optimizer=OptimizerConfig(
            name="muon", lr=1e-3, warmup_steps=1, schedule="linear", muon_blocks="whole", muon_except=["modulation"]
        ),
        trainer=TrainerConfig(
            max_steps=2,
            checkpoint_every=1,
            validate_every=2,
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            precision=precision,
            accumulate_grad_batches=2,
        ),
        ema=EMAConfig(decay=0.9),
        preview=PreviewConfig(num_samples=0, num_measured=0),
    )
    folder = Path(output)
    run = build_run(config)
    # At zero, as adaLN-zero begins, most gradients vanish.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.module.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    folder.mkdir(parents=True, exist_ok=True)
    run.callbacks.append(FirstGradients(folder))
    if source is not None:
        checkpoint = folder / "checkpoints/step=00000001.ckpt"
        checkpoint.parent.mkdir(exist_ok=True)
        copy = checkpoint.with_suffix(f".{os.getpid()}")  # each process makes its own, and the last one stays
        shutil.copy(Path(source, "checkpoints", checkpoint.name), copy)
        copy.replace(checkpoint)
    fit(run, config.trainer, config.ema, folder, None if source is None else "auto")


if __name__ == "__main__":
    for job in json.loads(sys.argv[1]):
        train(**job)
