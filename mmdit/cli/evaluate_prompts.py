"""``mmdit evaluate-prompts``: public benchmarks of prompts."""

from __future__ import annotations

from pathlib import Path

from mmdit.bounds import Batch, InferenceSteps, NonNegativeNumber, PositiveInt, Seed
from mmdit.cli.common.model import BUNDLED_MODEL, DtypeName
from mmdit.errors import UserError


def evaluate_prompts(
    benchmark: str,
    data: Path,
    output: Path,
    model: str = BUNDLED_MODEL,
    lora: str | None = None,
    lora_scale: NonNegativeNumber = 1.0,
    clip: str | None = "openai/clip-vit-base-patch32",
    dino: str | None = "facebook/dino-vits16",
    inception: str | None = "download",
    num_prompts: PositiveInt | None = None,
    images_per_prompt: PositiveInt | None = None,
    num_inference_steps: InferenceSteps = 50,
    guidance_scale: NonNegativeNumber = 7.5,
    fusing_scale: float | None = None,
    scheduler: str | None = None,
    seed: Seed = 0,
    batch_size: Batch = 8,
    device: str = "auto",
    dtype: DtypeName = "auto",
) -> None:
    """Measure a model on a public benchmark of prompts.

    dreambench: DreamBooth's 30 subjects, 25 prompts each, 4 pictures; DINO, CLIP-I and CLIP-T. multibench: prompts of
    several subjects (prompts.jsonl: {"prompt": "a {cat} beside a {dog}", "subjects": {"cat": FOLDER, "dog": FOLDER}}) with the
    same measures. coco30k: 30,000 captions of COCO's validation images; CLIP-T and FID. The first picture of a subject, by its
    file's name, is shown to the model. Beside the measures stand those of real pictures and of copies of the shown one.
    The pictures are kept in a folder beside the report; the same command again goes on where it was stopped. The data is not
    downloaded.

    Args:
        benchmark: dreambench, multibench or coco30k.
        data: Folder of the benchmark as its owners publish it.
        output: The report, a JSON file; it is replaced.
        model: A bundled model's name, a pipeline folder, or a Hub id; it must take prompts.
        lora: LoRA weights that are added to the model's: a file, a folder such as a run's lora/, or a Hub id.
        lora_scale: How much of them; 0 = none, 1 = all.
        clip: CLIP model for CLIP-I and CLIP-T, a folder or a Hub id; null = without.
        dino: DINO for the likeness of subjects, a folder or a Hub id; null = without.
        inception: Inception's weights for FID: a file, "download", or null = without. Only coco30k needs them.
        num_prompts: The first so many; null = all.
        images_per_prompt: Pictures of each prompt; null = the benchmark's own.
        num_inference_steps: Denoising steps.
        guidance_scale: On the prompt; 1 = no guidance.
        fusing_scale: How much of the subjects' pictures against the words alone, 0 to 1; null = the model's own.
        scheduler: euler, heun, unipc, dpmsolver++ or euler_maruyama; by default the model's own.
        seed: Of the choice of captions and of all noise; each picture has its own noise.
        batch_size: Pictures at a time; the measures do not depend on it.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto is bfloat16 on a GPU that has it and float32 elsewhere.
    """
    if output.is_dir():
        raise UserError(f"{output}: is a folder; --output is the report's file, such as {output / 'report.json'}")
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder")
    from mmdit.cli.common.model import choose_device, load_pipeline, lora_settings, quiet_libraries
    from mmdit.cli.common.output import prepare_file
    from mmdit.metrics.prompts.benchmarks import find_benchmark
    from mmdit.storage.json_object import write_json
    from mmdit.storage.versions import versions

    protocol = find_benchmark(benchmark)
    prompts = protocol.prompts(data, seed)[:num_prompts]
    real = protocol.real_images(data)
    prepare_file(output)
    where = choose_device(device)
    quiet_libraries()
    from mmdit.metrics.feature_networks import InceptionFeatures
    from mmdit.metrics.prompts.benchmark_run import BenchmarkPictures, score_distance, score_prompts
    from mmdit.metrics.prompts.evaluation import takes_prompts
    from mmdit.metrics.prompts.networks import ImageNetwork, ImageTextNetwork
    from mmdit.metrics.tasks import TaskRunner

    # Networks first: what is missing is found out now, not after the last picture.
    texts = None if clip is None else ImageTextNetwork(clip).to(where)
    images = None if dino is None or not protocol.has_subjects else ImageNetwork(dino).to(where)
    features = None
    if real and inception is not None:
        features = InceptionFeatures(None if inception == "download" else Path(inception)).to(where)
    pipe = load_pipeline(model, device, dtype, scheduler, lora=lora, lora_scale=lora_scale)
    if not takes_prompts(pipe):
        raise UserError(f"--model {model!r} takes no prompts: give one that was trained with them")
    pipe.set_progress_bar_config(disable=True)
    settings = {
        "benchmark": benchmark,
        "data": str(data),
        "model": model,
        **lora_settings(lora, lora_scale),
        "weights": pipe.weights_digest(),
        "num_prompts": len(prompts),
        "images_per_prompt": images_per_prompt or protocol.images_per_prompt,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "fusing_scale": fusing_scale,
        "scheduler": type(pipe.scheduler).__name__,
        "seed": seed,
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }
    folder = output.with_name(f"{output.stem}_images")
    pictures = BenchmarkPictures(folder, prompts, int(str(settings["images_per_prompt"])), settings)
    tasks = TaskRunner(pipe, num_inference_steps, guidance_scale=guidance_scale, internal_guidance_scale=1.0, seed=seed)
    pictures.make(tasks, batch_size=batch_size, fusing_scale=fusing_scale)
    report = score_prompts(pictures, clip=texts, dino=images)
    if features is not None:
        report["generation"] = score_distance(pictures, real, features)
    report["settings"] = settings | {
        "clip": clip,
        "dino": dino if images is not None else None,
        "inception": getattr(features, "name", None),
        "images": str(folder),
        "device": str(pipe.device),
        "versions": versions(),
    }
    write_json(output, report)
    for name, value in {**report["measures"], **report.get("generation", {})}.items():
        if isinstance(value, float) and value == value:
            print(f"{name} {value:.5g}")
    print(output)
