"""``mmdit bench train``, ``sample`` and ``loader``: how fast, against the machine's limit and the official code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdit.bounds import Batch, InferenceSteps, NonNegativeNumber, PositiveInt, PositiveNumber
from mmdit.errors import UserError
from mmdit.storage.json_object import write_json
from mmdit.training.config import TrainingConfig


def bench_train(
    num_steps: PositiveInt = 20,
    num_warmup: PositiveInt = 5,
    random_data: bool | None = None,
    latent_size: PositiveInt = 32,
    num_classes: PositiveInt = 1000,
    against: Path | None = None,
    report: Path | None = None,
    output: Path | None = None,
    resume: str | None = None,
    **config: Any,
) -> None:
    """Time training steps of a configuration, as mmdit train takes them.

    Prints images per second, TFLOP/s of counted work and its share of a matrix product measured in the same run (MFU), peak
    memory, and the share of the time spent waiting for data. Nothing is kept of the run itself.

    Args:
        num_steps: Optimizer steps that are timed.
        num_warmup: Steps before them, in which things are compiled and allocated.
        random_data: Read random latents with stored features instead of data.path; by default where data.path isn't there.
        latent_size: Height and width of random latents; 32 is 256 pixels.
        num_classes: Of random latents.
        against: Checkout of the official MMGen code, to time its step on the same batches.
        report: JSON file for the result.
        output: Not used; here so that a training configuration is taken as it is.
        resume: Not used.
        config: The keys of a training configuration, as in mmdit train; recipe must be transformer.
    """
    import torch

    _check_report(report)
    from mmdit.bench.benchmark import benchmark_training

    torch.set_float32_matmul_precision("high")
    settings = TrainingConfig(**config)
    if random_data is None:
        path = settings.data.path
        random_data = path is None or not Path(path, "latents.json").is_file()
    found = benchmark_training(
        settings,
        num_steps=num_steps,
        num_warmup=num_warmup,
        latent_size=latent_size,
        num_classes=num_classes,
        random_data=random_data,
        against=against,
    )
    if found is not None:
        _write(found, report)


def bench_sample(
    num_images: PositiveInt = 8,
    num_inference_steps: InferenceSteps = 25,
    guidance_scale: NonNegativeNumber = 1.0,
    latent_size: PositiveInt = 32,
    num_classes: PositiveInt = 1000,
    device: str = "auto",
    against: Path | None = None,
    report: Path | None = None,
    output: Path | None = None,
    resume: str | None = None,
    **config: Any,
) -> None:
    """Time sampling with the network of a configuration and random weights.

    From categories to latents of all modalities by the Euler sampler, in the configuration's precision; decoding is left out.

    Args:
        num_images: Sampled at once.
        num_inference_steps: Steps.
        guidance_scale: On the class; above 1 the network runs twice in each step.
        latent_size: Height and width of the latents; 32 is 256 pixels.
        num_classes: Of the network.
        device: auto, cpu, cuda, ...
        against: Checkout of the official MMGen code, to time its Euler sampler on the same work.
        report: JSON file for the result.
        output: Not used; here so that a training configuration is taken as it is.
        resume: Not used.
        config: The keys of a training configuration, as in mmdit train; those of the network, of its prediction and of the
            trainer's precision and compile count.
    """
    from mmdit.cli.common.model import choose_device

    _check_report(report)
    device = str(choose_device(device))
    from mmdit.bench.benchmark import benchmark_sampling

    found = benchmark_sampling(
        TrainingConfig(**config),
        num_images=num_images,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        latent_size=latent_size,
        num_classes=num_classes,
        device=device,
        against=against,
    )
    _write(found, report)


def bench_loader(
    data: Path | None = None,
    split: str = "train",
    batch_size: Batch = 256,
    seconds: PositiveNumber = 5.0,
    report: Path | None = None,
) -> None:
    """Time reading latents from the page cache on one core.

    Args:
        data: Folder of latents; by default random ones of 256 pixels and four modalities in a temporary folder.
        split: Split of the folder.
        batch_size: Samples in a batch.
        seconds: How long.
        report: JSON file for the result.
    """
    import torch

    _check_report(report)
    from mmdit.bench.benchmark import benchmark_loader

    torch.set_num_threads(1)
    _write(benchmark_loader(data, split, batch_size, seconds), report)


def _check_report(path: Path | None) -> None:
    """Refuse a report that can't be written, before anything is timed."""
    from mmdit.cli.common.output import prepare_file

    if path is not None and path.is_dir():
        raise UserError(f"{path}: is a folder; --report is a file, such as {path / 'bench.json'}")
    if path is not None:
        prepare_file(path, "--report")


def _write(found: dict[str, Any], path: Path | None) -> None:
    from mmdit.bench.benchmark import summary

    print(summary(found))
    if path is not None:
        write_json(path, found, indent=1)
