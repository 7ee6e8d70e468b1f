"""``mmdit bench``: the speed of what ``mmdit train`` and the pipeline run, as one report each."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.utils.data import DataLoader

from mmdit.bench import official, speed
from mmdit.bounds import check_bounds
from mmdit.data.datamodule import StepSampler, make_loader
from mmdit.data.latents import LatentShards
from mmdit.data.random_latents import write_random_latents
from mmdit.errors import UserError
from mmdit.flow.schedulers import make_scheduler
from mmdit.modalities import get_modalities
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import LATENTS, TrainingConfig
from mmdit.training.module import TransformerModule
from mmdit.training.recipes import build_run
from mmdit.training.recipes.transformer import make_transformer
from mmdit.training.run import make_trainer, parameter_count, prepare_network

FEATURE_DIM = 768
LATENT_CHANNELS = 4
MODALITIES = ["rgb", "depth", "normal", "segmentation"]
Report = dict[str, Any]


def _random_data(config: TrainingConfig, folder: Path, num_samples: int, latent_size: int, num_classes: int) -> None:
    """Write random latents of the configured kind, with features where the run is aligned, and point the run to them."""
    names = config.model.modalities or MODALITIES
    grid = latent_size // config.model.patch_size
    stored = config.alignment is not None and config.alignment.teacher != LATENTS
    features = (grid * grid, FEATURE_DIM) if stored else None
    write_random_latents(
        folder,
        modalities=get_modalities(names),
        num_samples=num_samples,
        latent_size=latent_size,
        num_classes=num_classes,
        features_shape=features,
    )
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(folder / "vae")  # it is not timed
    config.data = replace(config.data, path=str(folder))
    if config.alignment is not None and stored:
        config.alignment = replace(config.alignment, teacher=None, images=None)


def benchmark_training(
    config: TrainingConfig,
    *,
    num_steps: int = 20,
    num_warmup: int = 5,
    latent_size: int = 32,
    num_classes: int = 1000,
    random_data: bool = True,
    against: Path | None = None,
) -> Report | None:
    """Time training steps as ``mmdit train`` takes them, and the official code on the same batches.

    Args:
        config: of a transformer. Its data are read, or random latents like them are written to a temporary folder.
        num_steps, num_warmup: timed and untimed optimizer steps.
        latent_size, num_classes: of random data.
        random_data: whether the data are random.
        against: checkout of the official code, or None.

    Returns:
        The report; None in all processes but the first.

    Raises:
        UserError: a configuration of something else than a transformer, or settings that don't fit.
    """
    _check_recipe(config)
    check_bounds(config)
    code = None if against is None else official.OfficialCode(against)
    if code is not None and config.alignment is None:
        raise UserError("--against: the official code always aligns; give the configuration an alignment section")
    config.model = replace(config.model, pretrained=None)
    config.trainer = replace(config.trainer, max_steps=num_steps + num_warmup, validate_every=0, max_hours=None)
    with TemporaryDirectory(prefix="mmdit-bench-") as folder:
        if random_data:
            _random_data(config, Path(folder), 2 * config.data.batch_size, latent_size, num_classes)
        report, network, device = _time_training(config, num_warmup)
        if report is None:
            return None
        gc.collect()  # what was allocated for ours is not the official code's
        world_size = int(report["machine"]["processes"])
        dtype = _dtype(config.trainer.precision)
        flops = report["tflop_per_image"] * 1e12
        rate = speed.matmul_rate(device, dtype)
        ours = report["mmdit"]
        images = config.data.batch_size * config.trainer.accumulate_grad_batches
        ours |= _rates(ours["seconds_per_step"], images, images / world_size * flops, rate)
        if code is not None:
            size = config.data.batch_size // world_size
            batches = _batches(config, size, num_steps + num_warmup + 1)
            amp = dtype if config.trainer.precision.endswith("mixed") else None
            theirs = official.time_training(
                code,
                network,
                batches,
                feature_dim=FEATURE_DIM,
                device=device,
                amp_dtype=amp,
                num_steps=num_steps,
                num_warmup=num_warmup,
            )
            report["official"] = theirs | _rates(theirs["seconds_per_step"], size, size * flops, rate)
            _compare(report, world_size)
    return report


def _time_training(config: TrainingConfig, num_warmup: int) -> tuple[Report | None, MultimodalDiT, torch.device]:
    """Run the configuration; returns the report of the first process, the network, and where it ran."""
    run = build_run(config)
    assert isinstance(run.module, TransformerModule)
    timer = speed.StepTimer(num_warmup)
    trainer = make_trainer(config.trainer, config.ema, None, run.data, [timer])
    prepare_network(run.module.network, config.trainer)
    trainer.fit(run.module, datamodule=run.data)
    device, network = trainer.strategy.root_device, run.module.network
    report = {
        "what": "training",
        "config": _describe(config, network),
        "machine": speed.machine(device) | {"processes": str(trainer.world_size)},
        "num_steps": timer.num_steps,
        "tflop_per_image": speed.count_flops(network)["training"] / 1e12,
        "mmdit": {
            "seconds_per_step": timer.seconds_per_step,
            "data_wait_share": timer.data_wait_share,
            "peak_memory_gib": speed.peak_memory(device),
        },
    }
    return report if trainer.is_global_zero else None, network, device


def _batches(config: TrainingConfig, size: int, count: int) -> DataLoader[Any]:
    """Batches for one device; the official code is timed on one."""
    shards = LatentShards(str(config.data.path), config.data.train_split, config.model.modalities, features=True)
    sampler = StepSampler(len(shards), size, num_batches=count, seed=config.seed)
    return make_loader(shards, batch_sampler=sampler, num_workers=config.data.num_workers)


def benchmark_sampling(
    config: TrainingConfig,
    *,
    num_images: int = 8,
    num_inference_steps: int = 25,
    guidance_scale: float = 1.0,
    latent_size: int = 32,
    num_classes: int = 1000,
    device: str = "auto",
    against: Path | None = None,
) -> Report:
    """Time category -> latents of all modalities with random weights; the VAE, the same for everybody, is left out.

    Args:
        config: of a transformer; its precision is that of the weights.
        num_images: sampled at once.
        num_inference_steps, guidance_scale: of the Euler sampler; a scale above 1 runs the network twice as often.
        latent_size, num_classes: of the network.
        device: "auto", "cpu", "cuda", …
        against: checkout of the official code, or None.
    """
    _check_recipe(config)
    dtype = _dtype(config.trainer.precision)
    code = None if against is None else official.OfficialCode(against)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    names = config.model.modalities or MODALITIES
    bare = replace(config, alignment=None, model=replace(config.model, pretrained=None, gradient_checkpointing=False))
    network = make_transformer(
        bare, modalities=names, num_classes=num_classes, latent_size=latent_size, in_channels=LATENT_CHANNELS
    )
    network = network.to(place, dtype).eval()
    prepare_network(network, config.trainer)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=latent_size)
    pipe = MultimodalDiTPipeline(network, vae.to(place, dtype), make_scheduler("euler"), get_modalities(names))
    pipe.set_progress_bar_config(disable=True)
    labels = [number % num_classes for number in range(num_images)]

    def ours() -> None:
        pipe(
            class_labels=labels,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            height=latent_size,
            width=latent_size,
        )

    flops = speed.count_flops(network)["forward"] * num_inference_steps * (2 if guidance_scale != 1 else 1)
    rate = speed.matmul_rate(place, dtype)
    report: Report = {
        "what": "sampling",
        "config": _describe(config, network)
        | {"num_images": num_images, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale},
        "machine": speed.machine(place),
        "tflop_per_image": flops / 1e12,
    }
    report["mmdit"] = _time_call(ours, place, num_images=num_images, flops=flops, rate=rate)
    if code is not None:
        sample = official.sampler(code, network, place, dtype)
        noise = torch.randn(num_images, len(names), LATENT_CHANNELS, latent_size, latent_size)

        def theirs() -> None:
            sample(noise, torch.tensor(labels), num_inference_steps, guidance_scale)

        report["official"] = _time_call(theirs, place, num_images=num_images, flops=flops, rate=rate)
        _compare(report)
    return report


def benchmark_loader(data: Path | None, split: str = "train", batch_size: int = 256, seconds: float = 2.0) -> Report:
    """Time reading latents from the page cache in one process: ``data``, or 256-pixel random ones of four modalities."""
    if data is None and split != "train":
        raise UserError(f"--split is {split!r}: the random latents are the split 'train'; name your own with --data")
    with TemporaryDirectory(prefix="mmdit-bench-") as folder:
        if data is None:
            write_random_latents(Path(folder), modalities=get_modalities(MODALITIES), num_samples=2048)
        shards = LatentShards(data or folder, split)
        shape = [len(shards.modalities), *shards.info.moments_shape]
        rate = speed.measure_loader(shards, batch_size, seconds)
    where = speed.machine(torch.device("cpu"))
    return {"what": "loader", "config": {"sample": shape, "batch_size": batch_size}, "machine": where, "mmdit": rate}


def _time_call(
    function: Any, device: torch.device, *, num_images: int, flops: float, rate: float, repeats: int = 3
) -> Report:
    function()
    speed.synchronize(device)
    speed.reset_peak_memory(device)
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    speed.synchronize(device)
    seconds = (time.perf_counter() - began) / repeats
    rates = _rates(seconds, num_images, num_images * flops, rate)
    return rates | {"seconds_per_image": seconds / num_images, "peak_memory_gib": speed.peak_memory(device)}


def _rates(seconds: float, images: float, flops: float, matmul_rate: float) -> Report:
    """Rates from the seconds of a step: images of all processes, ``flops`` of one of them against its matrix product."""
    return {
        "images_per_second": images / seconds,
        "tflops": flops / seconds / 1e12,
        "matmul_tflops": matmul_rate / 1e12,
        "mfu": flops / seconds / matmul_rate,
    }


def _compare(report: Report, world_size: int = 1) -> None:
    ours = report["mmdit"]["images_per_second"] / world_size
    report["speedup"] = ours / report["official"]["images_per_second"]


def _check_recipe(config: TrainingConfig) -> None:
    if config.recipe != "transformer":
        raise UserError(f"bench is for recipe 'transformer', the configuration says {config.recipe!r}")


def _dtype(precision: str) -> torch.dtype:
    for start, dtype in (("bf16", torch.bfloat16), ("16", torch.float16), ("32", torch.float32), ("64", torch.float64)):
        if precision.startswith(start):
            return dtype
    raise UserError(f"trainer.precision is {precision!r}: give 32-true, bf16-mixed, bf16-true, 16-mixed or 16-true")


def _describe(config: TrainingConfig, network: MultimodalDiT) -> Report:
    trainer = config.trainer
    return {
        "size": config.model.size,
        "parameters": parameter_count(network),
        "tokens": prod(network.latent_shape) // network.config.patch_size**2,
        "batch_size": config.data.batch_size,
        "precision": trainer.precision,
        "strategy": trainer.strategy,
        "compile": trainer.compile,
        "float8": trainer.float8,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "optimizer": config.optimizer.name,
    }


def summary(report: Report) -> str:
    """The report as lines for a terminal."""
    machine = report["machine"]
    lines = [f"{report['what']} on {machine['device']}, torch {machine['torch']}: {report['config']}"]
    for name in ("mmdit", "official"):
        if name in report:
            values = ", ".join(f"{key} {value:.4g}" for key, value in report[name].items())
            lines.append(f"{name}: {values}")
    if "speedup" in report:
        lines.append(f"speedup over the official code, per device: {report['speedup']:.2f}")
    return "\n".join(lines)
