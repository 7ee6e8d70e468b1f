"""``mmdit edit`` and ``translate``: a given image is changed, in a region or in all but its geometry.

Heavy imports are inside the functions, as in ``generate.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdit.bounds import ClosedUnitInterval, PositiveInt
from mmdit.cli.common.depth_values import DepthValues
from mmdit.cli.common.model import check_seed
from mmdit.cli.common.options import takes_options
from mmdit.cli.common.sampling_options import ResultOptions, SamplingOptions, WordOptions
from mmdit.errors import UserError, unknown_name

KEEP_NOTHING = "none"


@takes_options
def edit(
    image: Path,
    mask: Path,
    *,
    typed: WordOptions,
    strength: ClosedUnitInterval = 1.0,
    num_images: PositiveInt = 1,
    sampling: SamplingOptions,
    output: Path = Path("outputs/edit"),
    depth: Path | None = None,
    normal: Path | None = None,
    segmentation: Path | None = None,
    given: list[str] | None = None,
    depth_values: DepthValues = "auto",
    match_input_size: bool = True,
    results: ResultOptions,
) -> None:
    """Generate a region of an image anew, in all modalities; the rest is kept.

    Depth, normals and segmentation of the image are estimated first, where they are not given. Outside the mask all
    modalities are held, and RGB comes back as it is in the image, pixel by pixel. Writes a folder OUTPUT/NAME_edited_SEED
    for each sample, with the category or the words of the prompt before the seed.

    Args:
        image: The RGB image; any that Pillow reads.
        mask: What is generated anew: an image of the same size, white = anew, black or transparent = keep; or .npy of 1 and 0.
        strength: How far the region may go from the image, from 0, where nothing changes, to 1, which starts from pure noise;
            that share of the steps is taken.
        num_images: Samples, with seeds SEED, SEED + 1, …
        output: Folder of the results.
        depth: Depth of the image, in place of an estimate; see mmdit condition, also for the next two.
        normal: Its normals.
        segmentation: Its label ids.
        given: NAME=FILE: any other modality of it; repeat it for others.
        depth_values: What the depth file holds; see mmdit condition.
        match_input_size: Resize what is generated to the size of the image; false leaves everything at the model's size.
    """
    check_seed(sampling.seed, num_images)
    from mmdit.cli.common.given import given_files, read_given
    from mmdit.cli.common.inputs import source_name
    from mmdit.cli.common.sampling import NumberedRequests
    from mmdit.flow.schedulers import steps_taken
    from mmdit.modalities import IMAGE
    from mmdit.modalities.rgb import read_picture
    from mmdit.pipelines.region import open_mask
    from mmdit.storage.digests import digest_file

    words = typed.read()
    maps = given_files({"depth": depth, "normal": normal, "segmentation": segmentation}, given)
    if IMAGE in maps:
        raise UserError(f"--given {IMAGE}={maps[IMAGE]}: {IMAGE} is given twice, also as IMAGE: leave it out")
    files = {IMAGE: image, **maps}
    size = read_picture(image).shape[:2]
    try:
        marked = open_mask(mask)
    except UserError as error:
        raise UserError(f"--mask {error}") from None
    if marked.shape != size:
        sizes = f"is {marked.shape[0]} x {marked.shape[1]} (height x width), {image} {size[0]} x {size[1]}"
        raise UserError(f"--mask {mask}: {sizes}: give a mask of the image's size")
    run = sampling.start("edit", words, output, results)
    steps_taken(run.num_inference_steps, strength)
    conditions = read_given(
        files, run.pipe, sampling.model, {"depth_values": depth_values}, edited=IMAGE, notes=run.notes
    )
    (one,) = words.asked(run.pipe)
    request = {
        **run.request(sampling.seed, one.category, one.label, files),
        **one.words,
        **words.request(run.pipe),
        "mask": {"path": str(mask), "sha256": digest_file(mask)},
        "strength": strength,
        "depth_values": depth_values,
        "match_input_size": match_input_size,
    }
    stem = "_".join([source_name(image), "edited", *([one.name] if typed.category or typed.prompt else [])])
    requests = NumberedRequests(
        [(stem, range(sampling.seed, sampling.seed + num_images))], lambda stem, own_seed: {**request, "seed": own_seed}
    )
    inputs = {
        "conditions": conditions,
        "mask": marked,
        "strength": strength,
        "match_input_resolution": match_input_size,
    }
    num_pixels = num_images * size[0] * size[1] if match_input_size else None
    run.run(requests, lambda batch: {**words.inputs([one] * len(batch)), **inputs}, num_pixels=num_pixels)


@takes_options
def translate(
    images: list[str],
    *,
    typed: WordOptions,
    keep: tuple[str, ...] | None = None,
    strength: ClosedUnitInterval = 1.0,
    num_images: PositiveInt = 1,
    sampling: SamplingOptions,
    output: Path = Path("outputs/translate"),
    match_input_size: bool = True,
    results: ResultOptions,
) -> None:
    """Make new RGB images with the structure of given ones.

    The geometry of an image is estimated, and a new image is generated from what is kept of it (MMGen's translation). Writes a
    folder OUTPUT/NAME_translated_SEED for each sample, with the category or the words of the prompt before the seed.

    Args:
        images: Image files, or folders of them (subfolders are not searched).
        keep: What of the image is kept, after the images: any of depth, normal, segmentation; by default all that the model
            has but RGB. none keeps nothing, for image-to-image with --strength.
        strength: How far the new image may go from the given one, from 0, where nothing changes, to 1, which starts from pure
            noise; that share of the steps is taken.
        num_images: Samples of each image, with seeds SEED, SEED + 1, …
        seed: Seed of the first sample of each image.
        output: Folder of the results.
        match_input_size: Resize results to the size of the input; false leaves everything at the model's size.
    """
    from mmdit.cli.common.inputs import find_images, read_sizes, refuse_left_out
    from mmdit.cli.common.sampling import NumberedRequests
    from mmdit.flow.schedulers import steps_taken
    from mmdit.modalities import IMAGE
    from mmdit.modalities.rgb import read_picture

    files = find_images(images)
    check_seed(sampling.seed, num_images * len(files))
    words = typed.read()
    sizes, bad = read_sizes(files)
    run = sampling.start("translate", words, output, results)
    steps_taken(run.num_inference_steps, strength)
    kept = _kept(keep, run.pipe.modalities, sampling.model)
    if not kept and strength == 1:
        raise UserError("--keep none with --strength 1 uses nothing of the images: give a smaller strength")
    (one,) = words.asked(run.pipe)
    middle = "_".join(["translated", *([one.name] if typed.category or typed.prompt else [])])
    paths = {f"{file.name}_{middle}": file.path for file in files if file.name in sizes}
    sizes = {f"{name}_{middle}": size for name, size in sizes.items()}
    said = {**one.words, **words.request(run.pipe), "keep": kept, "strength": strength}
    said["match_input_size"] = match_input_size
    given_in = {
        stem: run.request(sampling.seed, one.category, one.label, {IMAGE: path}) for stem, path in paths.items()
    }
    requests = NumberedRequests(
        [(stem, range(sampling.seed, sampling.seed + num_images)) for stem in paths],
        lambda stem, own_seed: {**given_in[stem], **said, "seed": own_seed},
    )

    def inputs(names: Sequence[str]) -> dict[str, Any]:
        native = [run.to_native(read_picture(paths[requests.split(name)[0]])) for name in names]
        return {
            **words.inputs([one] * len(names)), "conditions": {IMAGE: native}, "keep": kept, "strength": strength
        }  # fmt: skip

    def finish(name: str, arrays: dict[str, Any]) -> dict[str, Any]:
        size = sizes[requests.split(name)[0]]
        if not match_input_size:
            return arrays
        return {key: run.pipe.codecs[key].resize_output(value, *size) for key, value in arrays.items()}

    num_pixels = num_images * sum(h * w for h, w in sizes.values())
    run.run(requests, inputs, finish, num_pixels if match_input_size else None)
    refuse_left_out(bad, len(files), output)


def _kept(keep: Sequence[str] | None, modalities: Sequence[str] | Any, model: str) -> list[str]:
    """Names of modalities to keep, in the model's order. Raises UserError for others, and for all of them."""
    from mmdit.modalities import IMAGE

    if IMAGE not in modalities:
        raise UserError(f"--model {model!r} takes no RGB; its modalities are {', '.join(modalities)}")
    others = [name for name in modalities if name != IMAGE]
    if keep is None:
        return others
    names = [name for name in keep if name != KEEP_NOTHING]
    if KEEP_NOTHING in keep and names:
        raise UserError(
            f"--keep {' '.join(keep)}: {KEEP_NOTHING} keeps nothing, and {' and '.join(names)} would be kept: give "
            f"{KEEP_NOTHING} alone, or leave it out"
        )
    for name in names:
        if name == IMAGE:
            raise UserError(f"--keep {name}: it is what is translated: keep any of {', '.join(others)}")
        if name not in others:
            hint = "; images stand before --keep" if name and Path(name).exists() else ""
            raise UserError(f"--keep: {unknown_name('modality', name, others)}{hint}")
    return [name for name in others if name in names]
