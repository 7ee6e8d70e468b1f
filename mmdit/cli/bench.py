"""``mmdit bench train``, ``sample`` and ``loader``: how fast, against the machine's limit and the official code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdit.errors import UserError
from mmdit.storage.json_files import write_json
from mmdit.training.config import (
    AlignmentConfig,
    AutoencoderConfig,
    DataConfig,
    EMAConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    TaskConfig,
    TeacherConfig,
    TrainerConfig,
)


def bench_train(
    num_steps: int = 20,
    num_warmup: int = 5,
    random_data: bool | None = None,
    latent_size: int = 32,
    num_classes: int = 1000,
    against: Path | None = None,
    report: Path | None = None,
    output: Path | None = None,
    recipe: str = "transformer",
    seed: int = 0,
    model: ModelConfig = ModelConfig(),
    autoencoder: AutoencoderConfig = AutoencoderConfig(),
    teacher: TeacherConfig = TeacherConfig(),
    data: DataConfig = DataConfig(),
    task: TaskConfig = TaskConfig(),
    objective: ObjectiveConfig = ObjectiveConfig(),
    alignment: AlignmentConfig | None = None,
    optimizer: OptimizerConfig = OptimizerConfig(),
    trainer: TrainerConfig = TrainerConfig(),
    ema: EMAConfig | None = EMAConfig(),
    preview: PreviewConfig = PreviewConfig(),
    resume: str | None = None,
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
        recipe: Must be transformer.
        seed: As in mmdit train.
        model: As in mmdit train.
        autoencoder: As in mmdit train.
        teacher: As in mmdit train.
        data: As in mmdit train.
        task: As in mmdit train.
        objective: As in mmdit train.
        alignment: As in mmdit train.
        optimizer: As in mmdit train.
        trainer: As in mmdit train.
        ema: As in mmdit train.
        preview: Not used.
        resume: Not used.
    """
    import torch

    _check_report(report)
    from mmdit.bench.benchmark import benchmark_training
    from mmdit.training.config import TrainingConfig

    torch.set_float32_matmul_precision("high")
    config = TrainingConfig(
        recipe, seed, model, autoencoder, teacher, data, task, objective, alignment, optimizer, trainer, ema, preview
    )
    if random_data is None:
        random_data = data.path is None or not Path(data.path, "latents.json").is_file()
    found = benchmark_training(config, num_steps, num_warmup, latent_size, num_classes, random_data, against)
    if found is not None:
        _write(found, report)


def bench_sample(
    num_images: int = 8,
    num_inference_steps: int = 25,
    guidance_scale: float = 1.0,
    latent_size: int = 32,
    num_classes: int = 1000,
    device: str = "auto",
    against: Path | None = None,
    report: Path | None = None,
    output: Path | None = None,
    recipe: str = "transformer",
    seed: int = 0,
    model: ModelConfig = ModelConfig(),
    autoencoder: AutoencoderConfig = AutoencoderConfig(),
    teacher: TeacherConfig = TeacherConfig(),
    data: DataConfig = DataConfig(),
    task: TaskConfig = TaskConfig(),
    objective: ObjectiveConfig = ObjectiveConfig(),
    alignment: AlignmentConfig | None = None,
    optimizer: OptimizerConfig = OptimizerConfig(),
    trainer: TrainerConfig = TrainerConfig(),
    ema: EMAConfig | None = EMAConfig(),
    preview: PreviewConfig = PreviewConfig(),
    resume: str | None = None,
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
        recipe: Must be transformer.
        seed: Not used.
        model: As in mmdit train.
        autoencoder: Not used.
        teacher: Not used.
        data: Not used.
        task: Not used.
        objective: As in mmdit train.
        alignment: Not used.
        optimizer: Not used.
        trainer: Its precision and compile count.
        ema: Not used.
        preview: Not used.
        resume: Not used.
    """
    from mmdit.cli.common.model import check_sampling, choose_device

    _check_report(report)
    check_sampling(num_inference_steps, guidance_scale)
    device = str(choose_device(device))
    from mmdit.bench.benchmark import benchmark_sampling
    from mmdit.training.config import TrainingConfig

    config = TrainingConfig(recipe=recipe, model=model, data=data, objective=objective, trainer=trainer)
    found = benchmark_sampling(
        config, num_images, num_inference_steps, guidance_scale, latent_size, num_classes, device, against
    )
    _write(found, report)


def bench_loader(
    data: Path | None = None,
    split: str = "train",
    batch_size: int = 256,
    seconds: float = 5.0,
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
    from mmdit.cli.common.output import prepare_folder

    if path is not None and path.is_dir():
        raise UserError(f"{path}: is a folder; --report is a file, such as {path / 'bench.json'}")
    if path is not None:
        prepare_folder(path.parent)


def _write(found: dict[str, Any], path: Path | None) -> None:
    from mmdit.bench.benchmark import summary

    print(summary(found))
    if path is not None:
        write_json(path, found, indent=1)
