"""``mmdit generate``, ``understand`` and ``condition``: the pipeline's three uses, with files for inputs and outputs.

Heavy imports are inside the functions: the help and a misspelt option should not wait for them. (The parser also runs
what a module imports for type checking.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmdit.bounds import Batch, InferenceSteps, NonNegativeNumber, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName, check_seed, note
from mmdit.errors import UserError

DepthValues = Literal["auto", "metric", "relative", "near_white"]


def generate(
    categories: list[str],
    num_images: PositiveInt = 1,
    model: str = BUNDLED_MODEL,
    num_inference_steps: InferenceSteps = 25,
    guidance_scale: NonNegativeNumber = 2.0,
    scheduler: str | None = None,
    seed: Seed = 0,
    device: str = "auto",
    dtype: DtypeName = "auto",
    output: Path = Path("outputs/generate"),
    given: list[str] | None = None,
    depth_values: DepthValues = "auto",
    overwrite: bool = False,
    batch_size: Batch = 8,
) -> None:
    """Generate aligned images of all modalities from categories.

    Writes a folder OUTPUT/CATEGORY_SEED for each sample: the first of each category has the given seed, the next one the
    next seed, so any sample can be made again alone. The same command again replaces its own results.

    Args:
        categories: Names (or ids) of the model's categories; a wrong one lists the nearest names.
        num_images: Samples of each category.
        model: A bundled model's name, a pipeline folder, or a Hub id.
        num_inference_steps: Denoising steps.
        guidance_scale: How strongly the category is followed; 1 = no guidance, and twice as fast.
        scheduler: euler, heun, unipc, dpmsolver++ or euler_maruyama; by default the model's own.
        seed: Seed of the first sample of each category.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
        output: Folder of the results.
        given: NAME=FILE: a modality that is given and not generated; repeat it for others. See mmdit condition.
        depth_values: What a given depth file holds; see mmdit condition.
        overwrite: Replace results of other requests that have the same name.
        batch_size: Samples at a time; results depend on it only by rounding.
    """
    check_seed(seed, num_images * len(categories))
    from mmdit.cli.common.given import given_files, read_given
    from mmdit.cli.common.sampling import NumberedRequests, SamplingRun, category_names, resolve_category

    files = given_files({}, given)

    run = SamplingRun(
        "generate",
        model,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        device=device,
        dtype=dtype,
        output=output,
        overwrite=overwrite,
        batch_size=batch_size,
    )
    labels, names, ranges, next_seed = {}, {}, [], dict[str, int]()
    stems = category_names(run.pipe)
    for label, category in [resolve_category(run.pipe, category) for category in categories]:
        stem = stems[label]
        labels[stem], names[stem] = label, category
        first = next_seed.get(stem, seed)
        next_seed[stem] = first + num_images
        ranges.append((stem, range(first, first + num_images)))
    inputs: dict[str, Any] = {}
    reading: dict[str, Any] = {}
    if files:
        inputs["conditions"] = read_given(files, run.pipe, model, {"depth_values": depth_values})
        conditions = run.request(seed, conditions=files)["conditions"]
        reading = {"conditions": conditions, "depth_values": depth_values}
    requests = NumberedRequests(
        ranges, lambda stem, own_seed: {**run.request(own_seed, names[stem], labels[stem]), **reading}
    )
    run.run(requests, lambda batch: {"class_labels": [labels[requests.split(name)[0]] for name in batch], **inputs})


def understand(
    images: list[str],
    model: str = BUNDLED_MODEL,
    num_inference_steps: InferenceSteps = 1,
    scheduler: str | None = None,
    seed: Seed = 0,
    device: str = "auto",
    dtype: DtypeName = "auto",
    output: Path = Path("outputs/understand"),
    match_input_size: bool = True,
    overwrite: bool = False,
    batch_size: Batch = 8,
) -> None:
    """Predict depth, normals and segmentation from RGB images.

    Writes a folder OUTPUT/NAME for each image, NAME being the file's without suffix (with its folder's where two share one).
    Any image Pillow reads is taken: grey, palette, 16-bit and CMYK are converted, transparency is laid over white, EXIF
    orientation is applied. It is resized (not cropped) to the model's size, and the maps are resized back to the image's.
    A bad file that is named is refused before the work; one in a folder is left out, reported at the end, and exits with 2.

    Args:
        images: Image files, or folders of them (subfolders are not searched).
        model: A bundled model's name, a pipeline folder, or a Hub id.
        num_inference_steps: Denoising steps; prediction needs few.
        scheduler: euler, heun, unipc, dpmsolver++ or euler_maruyama; by default the model's own.
        seed: Seed of the noise, the same for each image.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
        output: Folder of the results.
        match_input_size: Resize the maps to the size of the input; false leaves everything at the model's size.
        overwrite: Replace results of other requests that have the same name.
        batch_size: Samples at a time; results depend on it only by rounding.
    """
    from PIL import Image

    from mmdit.cli.common.inputs import find_images, read_sizes
    from mmdit.cli.common.sampling import SamplingRun
    from mmdit.modalities import IMAGE
    from mmdit.modalities.rgb import read_picture

    files = find_images(images)
    sizes, bad = read_sizes(files)
    for reason in bad:
        note(f"left out: {reason}")
    run = SamplingRun(
        "understand",
        model,
        num_inference_steps=num_inference_steps,
        guidance_scale=1.0,
        scheduler=scheduler,
        device=device,
        dtype=dtype,
        output=output,
        overwrite=overwrite,
        batch_size=batch_size,
    )
    if IMAGE not in run.pipe.modalities:
        raise UserError(f"--model {model!r} takes no RGB; its modalities are {', '.join(run.pipe.modalities)}")
    paths = {file.name: file.path for file in files if file.name in sizes}
    requests = {
        name: {**run.request(seed, conditions={IMAGE: path}), "match_input_size": match_input_size}
        for name, path in paths.items()
    }

    def inputs(names: Sequence[str]) -> dict[str, Any]:
        pictures = [Image.fromarray(read_picture(paths[name])) for name in names]
        return {"conditions": {IMAGE: [p.resize(run.native[::-1], Image.Resampling.LANCZOS) for p in pictures]}}

    def finish(name: str, arrays: dict[str, Any]) -> dict[str, Any]:
        if not match_input_size:
            return arrays
        resized = {key: run.pipe.codecs[key].resize_output(value, *sizes[name]) for key, value in arrays.items()}
        return {**resized, IMAGE: read_picture(paths[name])}

    run.run(requests, inputs, finish, sum(h * w for h, w in sizes.values()) if match_input_size else None)
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(f"{len(bad)} of {len(files)} images left out: {bad[0]}{more}; the others are in {output}")


def condition(
    depth: Path | None = None,
    normal: Path | None = None,
    segmentation: Path | None = None,
    rgb: Path | None = None,
    category: str | None = None,
    num_images: PositiveInt = 1,
    model: str = BUNDLED_MODEL,
    num_inference_steps: InferenceSteps = 25,
    guidance_scale: NonNegativeNumber = 2.0,
    scheduler: str | None = None,
    seed: Seed = 0,
    device: str = "auto",
    dtype: DtypeName = "auto",
    output: Path = Path("outputs/condition"),
    given: list[str] | None = None,
    depth_values: DepthValues = "auto",
    overwrite: bool = False,
    batch_size: Batch = 8,
) -> None:
    """Generate the other modalities from any subset of them.

    Takes this program's own outputs, a dataset's files and others. All given maps are aligned pixel by pixel, so they must
    have one size; they are resized to the model's size, which the results have. Depth with NaN is refused.
    Writes a folder OUTPUT/SOURCE_from_GIVEN_SEED for each sample, such as torus_0_from_depth_0.

    Args:
        depth: Depth: .npy, .exr, or a grey image of 8, 16 or 32 bits; see --depth_values.
        normal: Normals: .npy of unit vectors (x right, y up, z towards the viewer), or an RGB image, (n + 1) / 2 x 255.
        segmentation: Label ids: an indexed image, or a grey one of 8 or 16 bits.
        rgb: An RGB image.
        category: Name (or id) of a category; by default none.
        num_images: Samples, with seeds SEED, SEED + 1, …
        model: A bundled model's name, a pipeline folder, or a Hub id.
        num_inference_steps: Denoising steps.
        guidance_scale: How strongly the category is followed, where one is given; 1 = no guidance.
        scheduler: euler, heun, unipc, dpmsolver++ or euler_maruyama; by default the model's own.
        seed: Seed of the first sample.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
        output: Folder of the results.
        given: NAME=FILE: any modality of the model, such as one of your own; repeat it for others.
        depth_values: What the depth file holds: metric = distances in any unit, 0 invalid; relative = the model's own space,
            as in our depth.npy and depth.png; near_white = relative, larger = nearer; auto knows our files and datasets',
            takes other floats within [0, 1] and 8-bit images as relative and the rest as metric, and says so.
        overwrite: Replace results of other requests that have the same name.
        batch_size: Samples at a time; results depend on it only by rounding.
    """
    check_seed(seed, num_images)
    from mmdit.cli.common.given import given_files, read_given
    from mmdit.cli.common.inputs import source_name
    from mmdit.cli.common.sampling import NumberedRequests, SamplingRun, resolve_category

    options = {"rgb": rgb, "depth": depth, "normal": normal, "segmentation": segmentation}
    files = given_files(options, given)
    if not files:
        listed = ", ".join(f"--{name}" for name in options)
        raise UserError(f"nothing is given: give at least one of {listed}, or --given NAME=FILE")
    scale = guidance_scale if category is not None else 1.0
    run = SamplingRun(
        "condition",
        model,
        num_inference_steps=num_inference_steps,
        guidance_scale=scale,
        scheduler=scheduler,
        device=device,
        dtype=dtype,
        output=output,
        overwrite=overwrite,
        batch_size=batch_size,
    )
    conditions = read_given(files, run.pipe, model, {"depth_values": depth_values})
    label, label_name = (None, None) if category is None else resolve_category(run.pipe, category)
    source = f"{source_name(next(iter(files.values())))}_from_{'_'.join(files)}"
    request = {**run.request(seed, label_name, label, files), "depth_values": depth_values}
    requests = NumberedRequests(
        [(source, range(seed, seed + num_images))],
        lambda stem, own_seed: {**request, "seed": own_seed},
    )
    run.run(requests, lambda batch: {"class_labels": [label] * len(batch), "conditions": conditions})
