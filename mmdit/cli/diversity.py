"""``mmdit diversity``: many RGB images for one map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdit.bounds import Batch, InferenceSteps, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName
from mmdit.errors import UserError, unknown_name

REPORT, PICTURE = "diversity.json", "diversity.png"


def diversity(
    data: Path,
    output: Path,
    split: str = "test",
    model: str = BUNDLED_MODEL,
    condition: str = "depth",
    num_maps: PositiveInt = 8,
    num_images: PositiveInt = 16,
    num_rows: PositiveInt = 4,
    num_inference_steps: InferenceSteps | None = None,
    seed: Seed = 0,
    batch_size: Batch = 32,
    teacher: str | None = None,
    device: str = "auto",
    dtype: DtypeName = "auto",
    allow_outside: bool = False,
) -> None:
    """Generate many RGB images for one depth map, and measure how they differ and keep to it.

    Writes OUTPUT/diversity.json: the mean distance between the images of one map (root mean square of RGB in [0, 1], and
    1 - cosine of a network's features) beside the error of the depth that the model sees in them; as controls the error against
    another map, and the same numbers of the true images, which show different scenes. OUTPUT/diversity.png shows some of
    them, with each one's error.

    Args:
        data: Dataset folder, the one that holds dataset.json.
        output: Folder of the figure; it is replaced.
        split: Split of the dataset.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        condition: The modality that is given: depth, normal or segmentation.
        num_maps: Maps that the numbers are means of, drawn from the split with the seed.
        num_images: Images of each map, at least 2.
        num_rows: Maps that are shown.
        num_inference_steps: Denoising steps of an image, by default the model's own; it looks at it in one.
        seed: Of the choice of maps and of all noise.
        batch_size: Images at a time; the results do not depend on it.
        teacher: Feature network: a folder or a timm model; by default the model's own, if it has one.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
        allow_outside: Accept a manifest that names files outside the dataset's folder.
    """
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; give a dataset, the folder that holds dataset.json")
    if num_images < 2:
        raise UserError(f"--num_images is {num_images}: give at least 2, a distance is between two")
    from mmdit.cli.common.model import load_pipeline
    from mmdit.cli.common.output import prepare_folder, write_image
    from mmdit.cli.common.pictures import labelled_grid
    from mmdit.metrics.diversity import DiversityMeasure, summary
    from mmdit.metrics.feature_networks import find_teacher
    from mmdit.metrics.maps import measured
    from mmdit.metrics.report import depth_range
    from mmdit.metrics.samples import EvaluationSamples
    from mmdit.metrics.tasks import TaskRunner, can_condition
    from mmdit.modalities import IMAGE
    from mmdit.storage.json_object import json_safe, write_json
    from mmdit.storage.versions import versions

    prepare_folder(output)
    pipe = load_pipeline(model, device, dtype)
    pipe.set_progress_bar_config(disable=True)
    samples = EvaluationSamples(
        data, split, pipe.modalities, pipe.native_shape, num_samples=num_maps, seed=seed, allow_outside=allow_outside
    )
    known = measured(samples.modalities)
    if condition not in known:
        raise unknown_name("--condition", condition, known)
    if IMAGE not in pipe.modalities:
        raise UserError(f"--model {model!r} makes no RGB: it has {', '.join(pipe.modalities)}")
    network = find_teacher(pipe, teacher)
    num_inference_steps = num_inference_steps or pipe.default_steps()
    steps = {"understanding": 1, "conditioning": num_inference_steps, "generation": num_inference_steps}
    measure = DiversityMeasure(
        TaskRunner(pipe, steps, seed=seed),
        condition,
        num_images,
        batch_size=batch_size,
        network=network,
        span=depth_range(samples.info.depth_scale),
    )
    made, controls = measure.of(sample for sample in samples if can_condition(pipe, condition, sample))
    if not made:
        raise UserError(f"{data / split}: none of the {len(samples)} samples has a {condition} that can be given")
    report: dict[str, Any] = {
        "images": summary(made, measure.metric),
        "controls": controls,
        "maps": [{"id": each.truth.id, "distance": each.distance, measure.metric: list(each.errors)} for each in made],
        "settings": {
            "model": model,
            "weights": pipe.weights_digest(),
            "data": str(data),
            "split": split,
            "condition": condition,
            "num_maps": len(made),
            "num_images": num_images,
            "num_inference_steps": num_inference_steps,
            "internal_guidance_scale": pipe.defaults.internal_guidance(prompt=False),
            "seed": seed,
            "teacher": None if network is None else str(getattr(network, "name", type(network).__name__)),
            "device": str(pipe.device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "versions": versions(),
        },
    }
    write_json(output / REPORT, json_safe(report))
    codec, shown = pipe.codecs[condition], made[:num_rows]
    given = [codec.truth_picture(each.truth.maps[condition]) for each in shown]
    rows = [[picture, *each.images] for picture, each in zip(given, shown, strict=True)]
    captions = [["", *(f"{error:.3g}" for error in each.errors)] for each in shown]
    write_image(
        output / PICTURE, labelled_grid(rows, [each.truth.id for each in shown], [condition], captions=captions)
    )
    own, other = report["images"], controls["other_map"]
    print(
        f"{num_images} images for each of {len(made)} maps: distance {own['distance']:.3f} "
        f"({controls['real_images']['distance']:.3f} between scenes), {measure.metric} {own[measure.metric]:.4f} "
        f"({other[measure.metric]:.4f} against another map)"
    )
    for name in (REPORT, PICTURE):
        print(output / name)
