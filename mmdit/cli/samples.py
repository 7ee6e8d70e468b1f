"""``mmdit samples`` and ``mmdit evaluate-generation``: generation benchmarks that others can reproduce."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from mmdit.bounds import Batch, InferenceSteps, NonNegativeNumber, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName
from mmdit.errors import UserError


def samples(
    output: Path,
    num_samples: PositiveInt = 50000,
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
    labels: Literal["balanced", "random", "none"] = "balanced",
    num_inference_steps: InferenceSteps = 250,
    scheduler: str = "euler_maruyama",
    guidance_scale: NonNegativeNumber = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    seed: Seed = 0,
    batch_size: Batch = 64,
    block_size: PositiveInt = 256,
    ema: bool | None = None,
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> None:
    """Generate RGB samples for a benchmark, on any number of processes, into one .npz.

    Start the same command in N processes (torchrun, srun): each makes its share of the blocks, and the last one writes
    OUTPUT/samples_NxHxWx3.npz as ADM's evaluator reads it (arr_0 uint8, arr_1 the labels). Started again, also with another
    N, it makes the missing blocks. Sample i is a function of the seed and i alone, up to the rounding that
    differs between sizes of batches. The defaults are MMGen's and SiT's: 50,000 samples, 250 steps of the SDE, no guidance.
    OUTPUT/samples.json records the settings, and so does the report of evaluate-generation.

    Args:
        output: Folder of the results.
        num_samples: Of all processes together.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
        labels: balanced (each class equally often), random (drawn with the seed), or none.
        num_inference_steps: Denoising steps.
        scheduler: euler_maruyama is the SDE; euler, heun, unipc and dpmsolver++ are solvers of the ODE, flow_map takes
            the steps that a model learned.
        guidance_scale: How strongly the class is followed; 1 = no guidance.
        guidance_interval: Timesteps (0 = data, 1 = noise) between which guidance is on.
        seed: Of labels and noise.
        batch_size: Samples at a time on each process.
        block_size: Samples in a file, which is the unit of work that an interruption can lose.
        ema: Whether the model's weights are averaged, for the record; by default as the training run around the model
            says, null without one.
        device: auto, cpu, cuda, cuda:1, mps; auto gives each process of a machine its own GPU.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """
    from mmdit.cli.common.model import load_pipeline, lora_settings
    from mmdit.cli.common.output import prepare_folder
    from mmdit.flow.schedulers import SCHEDULERS, make_scheduler
    from mmdit.metrics.many_samples import SampleFolder, SamplePlan, make_block
    from mmdit.modalities import IMAGE
    from mmdit.storage.versions import versions

    make_scheduler(scheduler)
    SamplePlan(num_samples, block_size, 1, labels, seed)  # refuses bad numbers before anything is loaded
    rank, world_size, local_rank = process_place()
    prepare_folder(output)
    pipe = load_pipeline(model, own_device(device, local_rank), dtype, scheduler, lora=lora, lora_scale=lora_scale)
    pipe.set_progress_bar_config(disable=True)
    if IMAGE not in pipe.modalities:
        raise UserError(f"--model {model!r} makes no RGB; its modalities are {', '.join(pipe.modalities)}")
    if labels != "none" and pipe.transformer.config.num_classes == 0:
        raise UserError(f"--labels is {labels}, and --model {model!r} has no classes: give none")
    plan = SamplePlan(num_samples, block_size, pipe.transformer.config.num_classes, labels, seed)
    height, width = pipe.native_shape
    settings = {
        "model": model,
        **lora_settings(lora, lora_scale),
        "weights": pipe.weights_digest(),
        "ema": ema_of(model) if ema is None else ema,
        "num_samples": num_samples,
        "size": height if height == width else [height, width],
        "labels": labels,
        "num_inference_steps": num_inference_steps,
        "scheduler": scheduler,
        "process": SCHEDULERS[scheduler].process,
        "guidance_scale": guidance_scale,
        "guidance_interval": list(guidance_interval),
        "seed": seed,
        "block_size": block_size,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "modalities": list(pipe.modalities),
    }
    hardware: dict[str, Any] = {"device": _device_name(pipe.device), "num_processes": world_size}
    hardware |= {"batch_size": batch_size, "versions": versions()}
    folder = SampleFolder(output, plan, settings, hardware)
    joined = 0 if list(output.glob("samples_*.npz")) else num_samples
    prepare_folder(output, (len(folder.missing()) * block_size + joined) * height * width * 3)
    mine = sorted(set(plan.share(rank, world_size)) & set(folder.missing()))
    for done, number in enumerate(mine, start=1):
        folder.write(
            number,
            make_block(
                pipe,
                plan,
                number,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_interval=guidance_interval,
                batch_size=batch_size,
            ),
        )
        print(f"process {rank} of {world_size}: block {done} of {len(mine)}", flush=True)
    missing = folder.missing()
    if missing:
        print(f"{output}: {len(missing)} of {plan.num_blocks} blocks are other processes'; the last one joins them")
    else:
        print(folder.join())


def evaluate_generation(
    images: Path,
    reference: Path,
    output: Path,
    inception: str | None = "download",
    dinov2: str | None = None,
    batch_size: Batch = 64,
    device: str = "auto",
) -> None:
    """Measure generated images against a reference: FID, sFID, IS, precision, recall, FD-DINOv2.

    Writes a report as JSON. The definitions are those of ADM's evaluator, which reads the same .npz files; its references
    hold the statistics of the whole data set for FID and sFID, and images for precision and recall. Numbers compare only at
    equal numbers of images, equal reference and equal resizing, all of which the report records, with the settings of
    'mmdit samples'.

    Args:
        images: An OUTPUT of 'mmdit samples', an .npz with arr_0 uint8 (images, height, width, 3), or a folder of images.
        reference: The same kinds; an .npz may hold mu, sigma, mu_s, sigma_s instead or besides.
        output: The report, a JSON file; it is replaced.
        inception: Weights of torch-fidelity's Inception v3, a .pth or .safetensors file; download fetches them once, and
            null leaves out what needs them.
        dinov2: A timm DINOv2 for FD-DINOv2, such as vit_large_patch14_dinov2.lvd142m, or a folder with its config.json and
            model.safetensors; by default without it.
        batch_size: Images at a time.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    if output.is_dir():
        raise UserError(f"{output}: is a folder; --output is the report's file, such as {output / 'report.json'}")
    if inception is None and dinov2 is None:
        raise UserError("neither --inception nor --dinov2 is given: name at least one feature network")
    from mmdit.cli.common.model import choose_device, quiet_libraries
    from mmdit.cli.common.output import prepare_file
    from mmdit.metrics.image_sets import open_images
    from mmdit.storage.json_object import write_json
    from mmdit.storage.versions import versions

    made, real = open_images(images), open_images(reference)
    prepare_file(output)
    quiet_libraries()
    from mmdit.metrics.feature_networks import DinoFeatures, InceptionFeatures
    from mmdit.metrics.generation import score_generation

    where = choose_device(device)
    networks: dict[str, Any] = {"inception": None, "dinov2": None}
    if inception is not None:
        networks["inception"] = InceptionFeatures(None if inception == "download" else Path(inception)).to(where)
    if dinov2 is not None:
        networks["dinov2"] = DinoFeatures(dinov2).to(where)
    scores = score_generation(
        made, real, inception=networks["inception"], dino=networks["dinov2"], batch_size=batch_size
    )
    report = {
        "generation": scores,
        "settings": {
            "images": str(images),
            "reference": str(reference),
            "inception": getattr(networks["inception"], "name", None),
            "dinov2": getattr(networks["dinov2"], "name", None),
            "device": str(where),
            "versions": versions(),
        },
        "samples": settings_of(images),
    }
    write_json(output, report)
    for name, value in scores.items():
        if isinstance(value, float) and math.isfinite(value):
            print(f"{name} {value:.5g}")
    print(output)


def process_place() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine), as torchrun or SLURM's srun tells them; (0, 1, 0) without.

    A shell of salloc, or a batch script, has SLURM_NTASKS of its allocation but is one process: only srun says how many
    its step has.

    Raises:
        UserError: variables that are not whole numbers.
    """
    environment = os.environ
    torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if all(name in environment for name in torchrun):
        return _numbers(torchrun)
    if "SLURM_STEP_NUM_TASKS" in environment:
        slurm = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:  # of srun before 20.11 the tasks after the first are known by their number
        slurm = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        if environment.get("SLURM_PROCID", "0") == "0":
            return 0, 1, 0
    return _numbers(slurm) if all(name in environment for name in slurm) else (0, 1, 0)


def _numbers(names: tuple[str, str, str]) -> tuple[int, int, int]:
    values = [os.environ[name] for name in names]
    try:
        rank, world_size, local_rank = map(int, values)
    except ValueError:
        raise UserError(f"{', '.join(names)} are {values}: give whole numbers") from None
    return rank, world_size, local_rank


def own_device(device: str, local_rank: int) -> str:
    """ "auto" on a machine with GPUs is the process's own, in turn."""
    import torch

    count = torch.cuda.device_count() if device == "auto" and torch.cuda.is_available() else 0
    return f"cuda:{local_rank % count}" if count else device


def ema_of(model: str) -> bool | None:
    """Whether a pipeline folder of a training run holds averaged weights: what the run's config.yaml says; None = unknown."""
    from mmdit.storage.yaml_text import read_yaml

    config = Path(model).expanduser().resolve().parent / "config.yaml"
    if not Path(model).expanduser().is_dir() or not config.is_file():
        return None
    try:
        values = read_yaml(config)
    except UserError:
        return None
    return bool(values["ema"]) if isinstance(values, dict) and "ema" in values else None


def settings_of(images: Path) -> dict[str, Any] | None:
    """What made the samples, where they lie in a folder of ``mmdit samples``; None = unknown."""
    from mmdit.storage.json_object import read_object

    folder = images if images.is_dir() else images.parent
    with suppress(UserError):  # a file of somebody else's
        return read_object(folder / "samples.json")
    return None


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
