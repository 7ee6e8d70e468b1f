"""``mmdit understand``: depth, normals and segmentation of pictures and videos.

Heavy imports are inside the functions, as in ``generate.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdit.bounds import Decay, InferenceSteps, PositiveInt, PositiveNumber, Seed
from mmdit.cli.common.model import DtypeName
from mmdit.cli.common.options import refuse_idle, takes_options
from mmdit.cli.common.sampling_options import ModelOptions, ResultOptions
from mmdit.errors import UserError


@takes_options
def understand(
    pictures: list[str],
    *,
    network: ModelOptions,
    num_inference_steps: InferenceSteps = 1,
    scheduler: str | None = None,
    seed: Seed = 0,
    device: str = "auto",
    dtype: DtypeName = "auto",
    output: Path = Path("outputs/understand"),
    match_input_size: bool = True,
    ensemble_size: PositiveInt = 1,
    video: bool = False,
    fps: PositiveNumber | None = None,
    temporal: Decay = 0.6,
    frame_files: bool = True,
    results: ResultOptions,
) -> None:
    """Predict depth, normals and segmentation from RGB images and videos.

    Writes a folder OUTPUT/NAME for each image, NAME being the file's without suffix (with its folder's where two share one).
    Any image Pillow reads is taken: grey, palette, 16-bit and CMYK are converted, transparency is laid over white, EXIF
    orientation is applied. It is resized (not cropped) to the model's size, and the maps are resized back to the image's.
    A bad file that is named is refused before the work; one in a folder is left out, reported at the end, and exits with 2.

    Of a video (mp4, mov, mkv, webm, an animated gif; pip install 'multimodal-dit[video]') it writes OUTPUT/NAME/depth.mp4,
    normal.mp4 and segmentation.mp4, with the frames' times, and a folder OUTPUT/NAME/000000 with the files of each frame. Its
    frames stream through; interrupted, the same command goes on.

    Args:
        pictures: Image files, folders of them (subfolders are not searched), or video files.
        num_inference_steps: Denoising steps; prediction needs few.
        scheduler: euler, heun, unipc, dpmsolver++, euler_maruyama, or flow_map for a model that learned its steps; by default
            the model's own.
        seed: Seed of the noise, the same for each image and frame.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
        output: Folder of the results.
        match_input_size: Resize the maps to the size of the input; false leaves everything at the model's size.
        ensemble_size: Estimates of each image that are combined into one, as in Marigold: takes so many times as long, and
            writes NAME_uncertainty.npy and .png too, where they disagree.
        video: Take each folder as a video: its images, of one size, in the order of the numbers in their names.
        fps: Frames per second of such folders; 24 by default.
        temporal: Of videos: how much of what was known is kept where the picture stands still, against flicker; 0 = each
            frame for itself, below 1.
        frame_files: Of videos: whether the files of each frame are kept; false leaves the videos alone, which takes far less
            room.
    """
    from mmdit.cli.common.inputs import find_images, find_videos, read_sizes, refuse_left_out, tell_apart
    from mmdit.cli.common.photographs import about_photographs
    from mmdit.cli.common.sampling import SamplingRun
    from mmdit.cli.common.videos import VideoJob, VideoOptions, refuse_cut_off, understand_videos
    from mmdit.modalities import IMAGE
    from mmdit.modalities.rgb import read_picture

    videos, rest = find_videos(pictures, folders=video, fps=fps)
    if not videos:
        about = {"video": video, "temporal": temporal, "frame_files": frame_files}
        refuse_idle(
            understand, about, "is about videos, and none is given: give one, or a folder of frames with --video"
        )
    if results.exr and videos and not frame_files:
        raise UserError(
            "--exr is of each frame's files, which --frame_files false leaves out: leave out one of the two"
        )
    files = find_images(rest, beside=list(videos)) if rest else []
    sizes, bad = read_sizes(files) if files else ({}, [])
    run = SamplingRun(
        "understand",
        num_inference_steps=num_inference_steps,
        guidance_scale=1.0,
        scheduler=scheduler,
        device=device,
        dtype=dtype,
        output=output,
        **vars(network),
        **vars(results),
    )
    if IMAGE not in run.pipe.modalities:
        raise UserError(f"--model {network.model!r} takes no RGB; its modalities are {', '.join(run.pipe.modalities)}")
    paths = {file.name: file.path for file in files if file.name in sizes}
    if network.lora is None:
        run.notes += about_photographs(run.pipe, network.model, [*paths.values(), *videos])
    ensemble = {"ensemble_size": ensemble_size} if ensemble_size > 1 else {}
    uncertain = {**ensemble, "output_uncertainty": True} if ensemble else {}
    requests = {
        name: {**run.request(seed, conditions={IMAGE: path}), "match_input_size": match_input_size, **ensemble}
        for name, path in paths.items()
    }

    def inputs(names: Sequence[str]) -> dict[str, Any]:
        return {"conditions": {IMAGE: [run.to_native(read_picture(paths[name])) for name in names]}, **uncertain}

    def finish(name: str, arrays: dict[str, Any]) -> dict[str, Any]:
        return run.at_size_of(read_picture(paths[name]), arrays) if match_input_size else arrays

    num_pixels = sum(h * w for h, w in sizes.values()) if match_input_size else None
    if requests:
        run.check(requests, num_pixels)
    names = tell_apart([*(file.path for file in files), *videos])[len(files) :]
    options = VideoOptions(
        temporal=temporal,
        match_input_size=match_input_size,
        frame_files=frame_files,
        inputs=uncertain,
        recorded=ensemble,
    )
    named = zip(names, videos.values(), strict=True)
    jobs = [VideoJob(run, each, output / name, seed, options) for name, each in named]
    run.say_notes()
    if requests:
        run.run(requests, inputs, finish, num_pixels)
    problems = understand_videos(jobs)
    refuse_left_out(bad, len(files), output)
    refuse_cut_off(problems, output)
