"""What a speed report is made of: counted work, the machine's own limit, time and memory of whole training steps."""

from __future__ import annotations

import platform
import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from mmdit.data.datamodule import StepSampler, make_loader
from mmdit.models.transformer import MultimodalDiT


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(network: MultimodalDiT) -> dict[str, float]:
    """Count floating-point operations (two per multiply-add) of one sample: {"forward", "training"}, with fake tensors.

    Matrix products and attention are counted. "training" is forward and backward, with an alignment projector and a head on
    a middle block where there are such. Recomputation by activation checkpointing is left out: it is not useful work. Blocks
    are alike, so two and three are counted and the rest follow.
    """
    two, three = _count(network, 2), _count(network, 3)
    return {key: two[key] + (network.config.depth - 2) * (three[key] - two[key]) for key in two}


def _count(network: MultimodalDiT, depth: int) -> dict[str, float]:
    values = {key: value for key, value in network.config.items() if not key.startswith("_")} | {"depth": depth}
    values |= {key: 1 for key in ("alignment_depth", "internal_guidance_depth") if values[key] is not None}
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):  # attention as its two products
        copy: Any = MultimodalDiT.from_config(values)
        m, c = len(copy.config.modalities), copy.config.in_channels
        latents = torch.empty(1, m, c, *copy.latent_shape)
        timesteps, roles = torch.empty(1, m), torch.zeros(1, m, dtype=torch.long)
        conditioning = copy.conditioner.null(1)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            copy(latents, timesteps, roles, conditioning)
        with FlopCounterMode(display=False) as training:
            internal = copy.internal_head is not None
            output = copy(latents, timesteps, roles, conditioning, output_alignment=True, output_internal=internal)
            parts = (output.sample, output.alignment, output.internal_sample)
            torch.stack([part.sum() for part in parts if part is not None]).sum().backward()
    return {"forward": float(forward.get_total_flops()), "training": float(training.get_total_flops())}


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Measure FLOP/s of a large square matrix product: the best of repetitions for about ``seconds``."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(2):
        torch.mm(a, b)
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < seconds or best == 0.0:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        synchronize(device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring the peak anew, where the device can (a CPU process has one peak for its life)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """Peak of the memory in use in GiB: tensors on a GPU, the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def machine(device: torch.device) -> dict[str, str]:
    """Return names and versions of what was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    found = {"device": name, "threads": str(torch.get_num_threads()), "torch": torch.__version__}
    return found | {"lightning": pl.__version__, "python": platform.python_version()}


class StepTimer(Callback):
    """Times whole training steps, from loading to the average's update, after ``num_warmup`` steps.

    The device is waited for at the beginning and at the end only, so that steps overlap as they do in training.
    """

    def __init__(self, num_warmup: int) -> None:
        self.num_warmup = num_warmup
        self.seconds, self.waited, self.num_steps = 0.0, 0.0, 0
        self._began = self._ended = 0.0

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / max(self.num_steps, 1)

    @property
    def data_wait_share(self) -> float:
        """Share of the time between the end of a batch and the beginning of the next."""
        return self.waited / max(self.seconds, 1e-9)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._began:
            self.waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended = time.perf_counter()
        if trainer.global_step == self.num_warmup and not self._began:
            synchronize(pl_module.device)
            reset_peak_memory(pl_module.device)
            self._began = self._ended = time.perf_counter()
        elif trainer.global_step == trainer.max_steps:
            synchronize(pl_module.device)
            self.seconds = time.perf_counter() - self._began
            self.num_steps = trainer.max_steps - self.num_warmup


def measure_loader(dataset: Dataset[Any], batch_size: int = 256, seconds: float = 2.0) -> dict[str, float]:
    """Time reading in the order of training, in this process, after a first pass that fills the page cache.

    Returns:
        "samples_per_second", and "samples_per_second_per_core" of processor time, which other programs don't slow down.
    """
    num_samples = len(dataset)  # type: ignore[arg-type]
    num_batches = -(-num_samples // batch_size)
    for _ in make_loader(dataset, batch_sampler=StepSampler(num_samples, batch_size, num_batches=num_batches, seed=0)):
        pass
    loader = make_loader(dataset, batch_sampler=StepSampler(num_samples, batch_size, num_batches=10**9, seed=1))
    count, began, processor = 0, time.perf_counter(), time.process_time()
    for batch in loader:
        count += len(batch["id"])
        if time.perf_counter() - began > seconds:
            break
    wall, processor = time.perf_counter() - began, time.process_time() - processor
    return {"samples_per_second": count / wall, "samples_per_second_per_core": count / processor}
