"""``mmdit evaluate-geometry``: public depth and normal benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmdit.bounds import Batch, InferenceSteps, NonNegativeNumber, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName
from mmdit.errors import UserError


def evaluate_geometry(
    benchmark: str,
    data: Path,
    list_file: Path,
    output: Path,
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
    num_inference_steps: InferenceSteps = 1,
    scheduler: str | None = None,
    seed: Seed = 0,
    num_samples: PositiveInt | None = None,
    batch_size: Batch = 8,
    height: PositiveInt | None = None,
    width: PositiveInt | None = None,
    crop: str | None = None,
    alignment: Literal["auto", "depth", "disparity"] = "auto",
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> None:
    """Measure zero-shot depth or normals on a public benchmark.

    Writes the errors and the protocol as JSON. Depth (nyuv2_depth, kitti_depth, eth3d_depth, scannet_depth, diode_depth)
    follows Marigold's evaluation: its folders and lists, masks, crops and ranges, scale and shift by least squares per image,
    means over images. Normals follow DSINE's (nyuv2_normal, scannet_normal: all pixels alike) or Marigold's
    (nyuv2_normal_marigold, scannet_normal_marigold, ibims_normal_marigold, diode_normal_marigold: means over images).
    Nothing is downloaded.

    Args:
        benchmark: One of the names above.
        data: Folder that the paths of the list are relative to.
        list_file: The list of samples that comes with Marigold's or DSINE's code, such as filename_list_test.txt.
        output: The report, a JSON file; it is replaced.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
        num_inference_steps: Denoising steps; prediction needs few.
        scheduler: euler, heun, unipc, dpmsolver++ or euler_maruyama; by default the model's own.
        seed: Seed of the noise; each image has its own noise.
        num_samples: The first so many of the list; null = all.
        batch_size: Images at a time; the errors do not depend on it.
        height: Height in pixels that images are resized to for the model; by default the model's own size.
        width: Width in pixels, given with the height.
        crop: Which pixels count: eigen or none for nyuv2_depth; eigen, garg or none for kitti_depth; by default eigen.
        alignment: Space of the least-squares fit; auto is the space of the model's depth.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """
    if (height is None) != (width is None):
        raise UserError("--height and --width belong together: give both or none")
    if output.is_dir():
        raise UserError(f"{output}: is a folder; --output is the report's file, such as {output / 'report.json'}")
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    from mmdit.cli.common.output import prepare_file
    from mmdit.metrics.geometry_benchmarks import GeometrySamples
    from mmdit.storage.digests import digest_file
    from mmdit.storage.json_object import write_json
    from mmdit.storage.versions import versions

    samples = GeometrySamples(benchmark, data, list_file, crop, num_samples)
    prepare_file(output)
    from mmdit.cli.common.model import load_pipeline, lora_settings
    from mmdit.metrics.zero_shot import evaluate_geometry as measure

    pipe = load_pipeline(model, device, dtype, scheduler, lora=lora, lora_scale=lora_scale)
    pipe.set_progress_bar_config(disable=True)
    size = None if height is None or width is None else (height, width)
    space = None if alignment == "auto" else alignment
    report = measure(
        pipe,
        samples,
        num_inference_steps=num_inference_steps,
        seed=seed,
        batch_size=batch_size,
        size=size,
        alignment=space,
    )
    report["settings"] = {
        "benchmark": benchmark,
        "data": str(data),
        "list_file": str(list_file),
        "list_sha256": digest_file(list_file),
        "model": model,
        **lora_settings(lora, lora_scale),
        "weights": pipe.weights_digest(),
        "num_inference_steps": num_inference_steps,
        "scheduler": type(pipe.scheduler).__name__,
        "seed": seed,
        "size": None if size is None else list(size),
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    write_json(output, report)
    for name, value in report[samples.benchmark.modality].items():
        print(f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}")
    print(output)
