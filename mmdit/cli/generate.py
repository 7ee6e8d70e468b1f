"""``mmdit generate`` and ``condition``, with files for inputs and outputs; ``understand`` is in a file of its own.

Heavy imports are inside the functions: the help and a misspelt option should not wait for them. (The parser also runs
what a module imports for type checking.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdit.bounds import ClosedUnitInterval, PositiveInt
from mmdit.cli.common.depth_values import DepthValues
from mmdit.cli.common.model import check_seed
from mmdit.cli.common.options import takes_options
from mmdit.cli.common.sampling_options import ResultOptions, SamplingOptions, WordOptions
from mmdit.errors import UserError


@takes_options
def generate(
    categories: list[str] = [],  # noqa: B006 - never changed
    prompt: list[str] | None = None,
    subject: list[str] | None = None,
    negative_prompt: str | None = None,
    fusing_scale: ClosedUnitInterval | None = None,
    num_images: PositiveInt = 1,
    *,
    sampling: SamplingOptions,
    output: Path = Path("outputs/generate"),
    depth: Path | None = None,
    normal: Path | None = None,
    segmentation: Path | None = None,
    rgb: Path | None = None,
    given: list[str] | None = None,
    depth_values: DepthValues = "auto",
    results: ResultOptions,
) -> None:
    """Generate aligned images of all modalities from categories or prompts.

    Writes a folder OUTPUT/NAME_SEED for each sample, NAME being the category, the words of the prompt, or both: the first of
    each has the given seed, the next one the next seed, so any sample can be made again alone. The same command again
    replaces its own results. With neither category nor prompt samples are of anything the model knows.

    Args:
        categories: Names (or ids) of the model's categories; a wrong one lists the nearest names. With prompts: one for all
            of them, or one for each. A prompt that names other categories than its own is refused.
        prompt: A text, such as "a red torus left of a blue cone"; repeat it for others. {word} marks words that an image
            stands for, {} an image without a word; {{ and }} are braces.
        subject: WORD=FILE, the image of the subject marked {word}, in all prompts; or FILE, for braces in their order. Any
            image Pillow reads; transparency is laid over white. Repeat it for others.
        negative_prompt: A text that guidance leads away from, in place of no prompt.
        fusing_scale: With subjects, 0 = what the text says to 1 = what the images show; 0.5 by default.
        num_images: Samples of each category or prompt.
        num_inference_steps: Denoising steps; null = the model's own, 25 where it names none, and 1 where RGB alone is given.
        guidance_scale: How strongly category and prompt are followed; 1 = no guidance, and twice as fast; null = the model's
            own, 2 where it names none.
        seed: Seed of the first sample of each category or prompt.
        output: Folder of the results.
        depth: Depth that is given and not generated; see mmdit condition, also for the next three.
        normal: Normals that are given.
        segmentation: Label ids that are given.
        rgb: An RGB image that is given.
        given: NAME=FILE: any other modality that is given; repeat it for others.
        depth_values: What a given depth file holds; see mmdit condition.
    """
    from mmdit.cli.common.given import given_files, read_given
    from mmdit.cli.common.sampling import NumberedRequests
    from mmdit.cli.common.words import Words
    from mmdit.modalities import IMAGE

    words = Words(categories, prompt, subject, negative_prompt, fusing_scale)
    check_seed(sampling.seed, num_images * words.count)
    files = given_files({"rgb": rgb, "depth": depth, "normal": normal, "segmentation": segmentation}, given)

    understanding = IMAGE in files and not words.asks
    run = sampling.start("generate", words, output, results, understanding=understanding)
    asked, ranges, next_seed = {}, [], dict[str, int]()
    for one in words.asked(run.pipe):
        asked[one.name] = one
        first = next_seed.get(one.name, sampling.seed)
        next_seed[one.name] = first + num_images
        ranges.append((one.name, range(first, first + num_images)))
    inputs: dict[str, Any] = {}
    reading = words.request(run.pipe)
    given_values = read_given(files, run.pipe, sampling.model, {"depth_values": depth_values}, notes=run.notes)
    if files:
        inputs["conditions"] = given_values
        conditions = run.request(sampling.seed, conditions=files)["conditions"]
        reading |= {"conditions": conditions, "depth_values": depth_values}

    def request(name: str, own_seed: int) -> dict[str, Any]:
        one = asked[name]
        return {**run.request(own_seed, one.category, one.label), **one.words, **reading}

    requests = NumberedRequests(ranges, request)
    run.run(requests, lambda batch: {**words.inputs([asked[requests.split(name)[0]] for name in batch]), **inputs})


@takes_options
def condition(
    depth: Path | None = None,
    normal: Path | None = None,
    segmentation: Path | None = None,
    rgb: Path | None = None,
    *,
    typed: WordOptions,
    num_images: PositiveInt = 1,
    sampling: SamplingOptions,
    output: Path = Path("outputs/condition"),
    given: list[str] | None = None,
    depth_values: DepthValues = "auto",
    results: ResultOptions,
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
        num_images: Samples, with seeds SEED, SEED + 1, …
        num_inference_steps: Denoising steps; null = 1 with --rgb and neither category nor prompt, else the model's own, 25 where
            it names none.
        output: Folder of the results.
        given: NAME=FILE: any modality of the model, such as one of your own; repeat it for others.
        depth_values: What the depth file holds: metric = distances in any unit, 0 invalid; relative = the model's own space,
            as in our depth.npy and depth.png; near_white = relative, larger = nearer; auto knows our files and datasets',
            tells pictures of depth by their lower part, which is usually nearer, takes the rest as metric, says so, and asks
            where numbers and picture disagree.
    """
    check_seed(sampling.seed, num_images)
    from mmdit.cli.common.given import given_files, read_given
    from mmdit.cli.common.inputs import source_name
    from mmdit.cli.common.sampling import NumberedRequests
    from mmdit.modalities import IMAGE

    words = typed.read()
    options = {"rgb": rgb, "depth": depth, "normal": normal, "segmentation": segmentation}
    files = given_files(options, given)
    if not files:
        listed = ", ".join(f"--{name}" for name in options)
        raise UserError(f"nothing is given: give at least one of {listed}, or --given NAME=FILE")
    understanding = IMAGE in files and not words.asks
    run = sampling.start("condition", words, output, results, understanding=understanding)
    conditions = read_given(files, run.pipe, sampling.model, {"depth_values": depth_values}, notes=run.notes)
    (one,) = words.asked(run.pipe)
    source = f"{source_name(next(iter(files.values())))}_from_{'_'.join(files)}"
    request = {
        **run.request(sampling.seed, one.category, one.label, files),
        **one.words,
        **words.request(run.pipe),
        "depth_values": depth_values,
    }
    requests = NumberedRequests(
        [(source, range(sampling.seed, sampling.seed + num_images))],
        lambda stem, own_seed: {**request, "seed": own_seed},
    )
    run.run(requests, lambda batch: {**words.inputs([one] * len(batch)), "conditions": conditions})
