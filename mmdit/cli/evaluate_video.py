"""``mmdit evaluate-video``: flicker and accuracy on camera paths through rendered scenes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmdit.bounds import Batch, Decay, InferenceSteps, NonNegativeNumber, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName
from mmdit.errors import UserError

if TYPE_CHECKING:
    from mmdit.metrics.video import TrueVideo

SPLIT = "video"


def evaluate_video(
    output: Path,
    num_scenes: PositiveInt = 20,
    num_frames: PositiveInt = 48,
    scene_seed: Seed = 2026,
    temporal: Decay = 0.6,
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
    num_inference_steps: InferenceSteps = 1,
    seed: Seed = 0,
    batch_size: Batch = 8,
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> None:
    """Measure how much a model flickers on camera paths through rendered scenes.

    Writes accuracy and flicker as JSON: with independent noise for each frame, with one noise for all, and with the average
    over time that understand makes of videos; and of the truth itself, the control. Needs the renderer (pip install
    'multimodal-dit[scenes]').

    Args:
        output: The report, a JSON file; it is replaced.
        num_scenes: Camera paths, each through a scene of its own.
        num_frames: Of each path, which is closed: fewer frames move faster.
        scene_seed: Seed of the scenes, which no model was trained on.
        temporal: How much of what was known is kept where the picture stands still; see mmdit understand.
        model: A bundled model's name, a pipeline folder, or a Hub id; it must know the classes of the scenes.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
        num_inference_steps: Denoising steps.
        seed: Seed of the noise.
        batch_size: Frames at a time; the figures do not depend on it.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """
    if output.is_dir():
        raise UserError(f"{output}: is a folder; --output is the report's file, such as {output / 'video.json'}")
    if num_frames < 2:
        raise UserError(f"--num_frames is {num_frames}: give at least 2, a change needs them")
    from mmdit.cli.common.model import load_pipeline, lora_settings
    from mmdit.cli.common.output import prepare_file
    from mmdit.metrics.video import evaluate_video as measure
    from mmdit.storage.json_object import write_json
    from mmdit.storage.versions import versions

    prepare_file(output)
    pipe = load_pipeline(model, device, dtype, lora=lora, lora_scale=lora_scale)
    pipe.set_progress_bar_config(disable=True)
    height, width = pipe.native_shape
    if height != width:
        raise UserError(f"--model {model!r} was built for {height} x {width} pixels: scenes are rendered square")
    videos = rendered_videos(num_scenes, num_frames, scene_seed, height)
    report = {
        "video": measure(
            pipe,
            videos,
            temporal=temporal,
            num_inference_steps=num_inference_steps,
            seed=seed,
            batch_size=batch_size,
        ),
        "settings": {
            "num_scenes": num_scenes,
            "num_frames": num_frames,
            "scene_seed": scene_seed,
            "temporal": temporal,
            "model": model,
            **lora_settings(lora, lora_scale),
            "weights": pipe.weights_digest(),
            "num_inference_steps": num_inference_steps,
            "seed": seed,
            "device": str(pipe.device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "versions": versions(),
        },
    }
    write_json(output, report)
    for method, maps in report["video"].items():
        listed = (f"{name} flicker {values['flicker']:.3f}{values['unit']}" for name, values in maps.items())
        print(f"{method}: {', '.join(listed)}")
    print(output)


def rendered_videos(num_scenes: int, num_frames: int, seed: int, size: int) -> Iterator[TrueVideo]:
    """Camera paths through scenes with their truth, rendered one after the other."""
    import numpy as np

    from mmdit.metrics.flicker import View
    from mmdit.metrics.video import TrueVideo
    from mmdit.progress import Progress
    from mmdit.sources.scenes.camera_path import path_layouts
    from mmdit.sources.scenes.dataset import MODALITIES
    from mmdit.sources.scenes.solids import Solids, default_distractors

    scenes = Solids(seed, SPLIT, size, False, default_distractors("main", False), "main")
    for index in Progress(num_scenes, "evaluate-video", "scene").track(range(num_scenes)):
        frames = [scenes.render(layout) for layout in path_layouts(scenes.layout(index), num_frames)]
        views = []
        for frame in frames:
            camera = frame.layout.camera
            views.append(View(frame.depth, np.asarray(camera.eye), camera.world_to_camera, camera.fov))
        yield TrueVideo(views, {name: np.stack([getattr(frame, name) for frame in frames]) for name in MODALITIES})
