"""Every configuration that is shipped trains, and the published recipes train as published."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmdit.cli.common.ablation_plan import plan_all
from mmdit.cli.common.ablation_table import read_table
from mmdit.cli.common.parsing import build_parser
from mmdit.cli.main import COMMANDS, find_command, main
from mmdit.modalities import MODALITIES
from mmdit.models.config import get_size
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.loading import bundled_models
from mmdit.task import TaskMixture
from mmdit.training.checkpoints import read_checkpoint
from mmdit.training.distillation import PROMPT_KINDS
from mmdit.training.optimizers import make_optimizer
from mmdit.training.recipes.transformer import begins_with, make_transformer

CONFIGS = {path.stem: path for path in (Path(__file__).resolve().parents[1] / "configs").glob("*.yaml")}
LARGE = ["hypersim_depth2rgb", "hypersim_understanding", "imagenet256_xl2", "imagenet256_xl2_plus"]
# These read images, the others latents.
SCENE_RECIPES = ["scenes64_captioner", "scenes64_clip", "scenes64_decoder", "scenes64_image_encoder", "scenes64_styles"]
IMAGE_RECIPES = [*SCENE_RECIPES, "scenes64_detector", "scenes64_teacher", "scenes64_vae"]
OF_A_RUN = ["scenes64_styles"]  # of a model that another recipe makes; here the bundled one
JOINING = "umm_scenes64_joined"  # of two models; here of one in both places
LORA_RECIPES = ["scenes64_lora"]  # of the bundled model, as it is
PROMPT_RECIPES = [name for name in CONFIGS if name.startswith(("umm_", "unimo_"))] + [
    "scenes64_fewsteps",
    "scenes64_gpu",
    "scenes64_internal",
]
ONE_STEP = """
--trainer.max_steps 1 --trainer.validate_every 0 --trainer.log_every 1 --trainer.accelerator cpu --trainer.devices 1
--trainer.strategy auto --trainer.precision 32-true --trainer.compile false --data.batch_size 4 --data.num_workers 0
"""
IN_MEMORY = "--data.path null --model.size debug"
ON_DISK = "--model.size debug --model.pretrained null --data.whitening dataset"
WITHOUT_FILES = "--alignment.depth 1 --alignment.teacher null --model.pretrained null"


def train(name: str, run: Path, *more: str) -> None:
    """Train a configuration for one step on this machine, its network as small as can be."""
    small = "" if name in IMAGE_RECIPES + LORA_RECIPES else ON_DISK if name in PROMPT_RECIPES else IN_MEMORY
    small += f" {WITHOUT_FILES}" if name in LARGE else ""
    small += " --model.pretrained scenes64" if name in OF_A_RUN else ""
    small += " --model.internal_guidance_depth 1" if name == "scenes64_internal" else ""
    arguments = ["--config", str(CONFIGS[name]), "--output", str(run), *ONE_STEP.split(), *small.split(), *more]
    assert main(["train", *arguments]) == 0


@pytest.fixture(scope="module")
def parsed() -> dict[str, Any]:
    """Every configuration, as the command sees it, by name."""
    command = COMMANDS["train"]
    parser = build_parser(command.load(), "mmdit train", command.positional, command.config)
    return {name: parser.instantiate(parser.parse_args(["--config", str(path)])) for name, path in CONFIGS.items()}


def settings(values: Any) -> dict[str, Any]:
    """All settings of a configuration by their dotted names, but for the run folder's."""
    sections = {key: asdict(value) if is_dataclass(value) else {"": value} for key, value in vars(values).items()}
    return {f"{key}.{name}": value for key, section in sections.items() for name, value in section.items()} | {
        "output.": None
    }


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_configuration_trains(
    name: str,
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    prompt_folders: Any,
    style_latents: Path,
    parsed: dict[str, Any],
) -> None:
    data: list[str] = []
    if name in PROMPT_RECIPES:
        data = ["--data.path", str(prompt_folders.latents), "--prompts.path", str(prompt_folders.data)]
        encoder = prompt_folders.captioner if name.startswith("unimo_") else prompt_folders.clip
        data += ["--prompts.text_encoder", str(encoder)]
        if name == JOINING:
            train("umm_scenes64_style", tmp_path / "before", *data)
            before = str(tmp_path / "before/pipeline")
            data += ["--model.pretrained", before, "--model.weights_from", json.dumps({"blocks.*.cross": before})]
            data += [word for kind in PROMPT_KINDS for word in (f"--distillation.{kind}", before)]
    elif name in IMAGE_RECIPES:
        data = ["--data.path", str(prompt_folders.data if name in SCENE_RECIPES else make_dataset(4, size=32))]
    elif name in LORA_RECIPES:
        data = ["--data.path", str(style_latents)]
    train(name, tmp_path / "run", *data)
    weights = list(tmp_path.glob("run/*/**/*.safetensors"))
    assert weights, "nothing was exported"
    assert parsed[name].trainer.max_steps > 1, "it is shrunk here, not in the file"


@pytest.mark.parametrize(
    "chain",
    [
        ("umm_scenes64_text", "umm_scenes64_mlp", "umm_scenes64_both"),
        ("umm_xl2_text", "umm_xl2_mlp", "umm_xl2_both"),
        ("unimo_scenes64_text", "unimo_scenes64_multimodal"),
        ("unimo_xl2_text", "unimo_xl2_multimodal"),
    ],
    ids=lambda chain: chain[0].removesuffix("_text"),
)
def test_each_step_of_a_published_recipe_begins_with_the_one_before(
    chain: tuple[str, ...], tmp_path: Path, prompt_folders: Any, parsed: dict[str, Any]
) -> None:
    encoder = prompt_folders.captioner if chain[0].startswith("unimo_") else prompt_folders.clip
    data = ["--data.path", str(prompt_folders.latents), "--prompts.path", str(prompt_folders.data)]
    data += ["--prompts.text_encoder", str(encoder)]
    before: dict[str, Any] = {}
    for name in chain:
        if before:
            start = tmp_path / parsed[name].model.pretrained  # as the file says, from where its runs are
            data += ["--model.pretrained", str(start), "--data.whitening", "pretrained"]
        train(name, tmp_path / parsed[name].output, *data)
        weights = load_file(tmp_path / parsed[name].output / "pipeline/transformer/diffusion_pytorch_model.safetensors")
        changed = {key for key, value in weights.items() if before and not torch.equal(value, before[key])}
        trainable = parsed[name].model.trainable or [""]
        assert all(begins_with(key, trainable) for key in changed)
        assert not before or trainable != [""] or any(key.startswith("blocks.") for key in changed)
        before = weights


@pytest.mark.parametrize(
    ("name", "steps", "mixture", "condition_time"),
    [
        ("imagenet256_xl2", 600_000, "mmgen", 0.01),
        ("hypersim_understanding", 20_000, "understanding", 0.0),
        ("hypersim_depth2rgb", 5_000, "mmgen", 0.01),
    ],
)
def test_published_recipes_train_as_published(
    name: str, steps: int, mixture: str, condition_time: float, tmp_path: Path, parsed: dict[str, Any]
) -> None:
    """arXiv 2503.20644 and the official training scripts, read from what a run of one step leaves where that shows it."""
    train(name, tmp_path)
    (group,) = read_checkpoint(tmp_path / "checkpoints/step=00000001.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["lr"] == group["initial_lr"] == 1e-4  # no warm-up, no decay
    assert (group["betas"], group["weight_decay"], "muon" in group) == ((0.9, 0.999), 0.0, False)
    model = json.loads((tmp_path / "pipeline/model_index.json").read_text())
    weights = {key: modality["loss_weight"] for key, modality in model["modalities"].items()}
    assert weights == {"rgb": 1.0, "depth": 0.2, "normal": 0.1, "segmentation": 0.1}
    network = json.loads((tmp_path / "pipeline/transformer/config.json").read_text())
    assert network["modalities"] == ["rgb", "depth", "normal", "segmentation"]
    assert (network["patch_size"], network["class_dropout_prob"], network["prediction"]) == (2, 0.1, "velocity")
    assert (network["qk_norm"], network["position_embedding"]) == (None, "sincos")

    # At full size, or in numbers that a run draws:
    values = parsed[name]
    assert (values.model.size, values.model.drop_class_given_rgb) == ("XL", False)
    assert (values.trainer.max_steps, values.task.mixture) == (steps, mixture)
    assert (values.objective.timesteps, values.objective.max_condition_time) == ("uniform", condition_time)
    assert values.objective.pure_noise_share == 0
    alignment = values.alignment
    assert (alignment.weight, alignment.depth, alignment.hidden_size) == (0.5, 8, 2048)
    assert alignment.teacher == "vit_base_patch14_dinov2"
    assert values.data.batch_size * values.trainer.accumulate_grad_batches == 256
    assert (values.data.whitening, values.trainer.gradient_clip_val, values.ema.decay) == ("vae", 1.0, 0.9999)


def test_fine_tunes_fit_the_model_they_start_from(parsed: dict[str, Any]) -> None:
    start = parsed["imagenet256_xl2"]
    for name in ("hypersim_understanding", "hypersim_depth2rgb"):
        values = parsed[name]
        assert Path(values.model.pretrained) == Path(start.output) / "pipeline"
        assert asdict(values.model) == asdict(start.model) | {"pretrained": values.model.pretrained}
        assert values.objective.prediction == start.objective.prediction


def test_our_recipe_at_scale_differs_from_the_published_one_where_it_says_so(parsed: dict[str, Any]) -> None:
    """The rest is the same network and the same data, so the two can be compared."""
    ours, theirs = (settings(parsed[name]) for name in ("imagenet256_xl2_plus", "imagenet256_xl2"))
    assert {key for key in ours if ours[key] != theirs[key] and key.split(".")[0] in ("model", "data", "task")} == {
        *("model.drop_class_given_rgb", "model.qk_norm", "model.position_embedding", "data.whitening", "task.mixture")
    }
    for key in ("alignment.teacher", "optimizer.lr", "trainer.precision"):
        assert ours[key] == theirs[key]
    assert (ours["objective.prediction"], ours["optimizer.name"]) == ("sample", "muon")


def test_whatever_starts_from_our_recipe_at_scale_predicts_as_it_does(parsed: dict[str, Any]) -> None:
    start = parsed["imagenet256_xl2_plus"]
    followers = {Path(start.output) / "pipeline": start.objective.prediction}
    for name in ("umm_xl2_text", "umm_xl2_mlp", "umm_xl2_both", "unimo_xl2_text", "unimo_xl2_multimodal"):
        values = parsed[name]
        assert followers[Path(values.model.pretrained)] == values.objective.prediction, name
        followers[Path(values.output) / "pipeline"] = values.objective.prediction


def test_prompts_are_trained_in_the_papers_steps(parsed: dict[str, Any]) -> None:
    """UMM-Diffusion (arXiv 2303.09319, section 4.1): MLP first, then denoiser and MLP; each starts where the one before ends."""
    for size in ("scenes64", "xl2"):
        text, mlp, both = (parsed[f"umm_{size}_{step}"] for step in ("text", "mlp", "both"))
        assert [values.prompts.max_subjects > 0 for values in (text, mlp, both)] == [False, True, True]
        assert [values.model.trainable for values in (text, mlp, both)] == [None, ["conditioner.pseudo_word"], None]
        assert Path(mlp.model.pretrained) == Path(text.output) / "pipeline"
        assert Path(both.model.pretrained) == Path(mlp.output) / "pipeline"
        assert {values.model.conditioner for values in (text, mlp, both)} == {"tiue"}
    assert both.data.batch_size * both.trainer.accumulate_grad_batches == mlp.data.batch_size == 192
    assert both.trainer.max_steps == mlp.trainer.max_steps == 200_000
    assert both.optimizer.lr == mlp.optimizer.lr == 1e-5
    assert (both.ema.decay, both.preview.guidance_scale, both.model.class_dropout_prob) == (0.9999, 7.5, 0.1)
    assert both.preview.num_inference_steps == mlp.preview.num_inference_steps == 50
    assert both.model.conditioner_settings == {"text_share": 0.36}
    assert both.prompts.text_encoder == "openai/clip-vit-large-patch14"


def test_the_script_for_a_gpu_gives_commands_that_are_understood(monkeypatch) -> None:
    """Its lines, with numbers for what is counted when it runs."""
    root = CONFIGS["debug"].parents[1]
    monkeypatch.chdir(root)
    text = (root / "configs/scenes64_gpu.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.replace("$mmdit ", "") for line in text.splitlines() if line.strip().startswith("$mmdit ")]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(re.sub(r"\$(\{\w+\}|\w+)", "7", line).replace("$@", ""))
        name, rest = find_command([word for word in words if word])
        command = COMMANDS[name]
        build_parser(command.load(), f"mmdit {name}", command.positional, command.config).parse_args(rest)


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_are_built_as_configured(name: str, parsed: dict[str, Any]) -> None:
    """On the meta device: 28 blocks of width 1152, 16 heads; four heads, the embeddings and a projector of 8 M."""
    values = parsed[name]
    size = get_size(values.model.size) | {
        "modalities": values.model.modalities,
        "qk_norm": values.model.qk_norm,
        "position_embedding": values.model.position_embedding,
        "prediction": values.objective.prediction,
        "alignment_depth": values.alignment.depth,
        "alignment_hidden_size": values.alignment.hidden_size,
    }
    with torch.device("meta"):
        network = MultimodalDiT(**size)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(694.4e6, rel=1e-3)


@pytest.mark.parametrize("scale", ["scenes64", "xl2"])
def test_unimo_has_the_numbers_of_its_paper(scale: str, parsed: dict[str, Any]) -> None:
    """arXiv 2401.13388: text first, then interleaved prompts with 10% plain captions, all of the denoiser trained."""
    text, multimodal = parsed[f"unimo_{scale}_text"], parsed[f"unimo_{scale}_multimodal"]
    assert Path(multimodal.model.pretrained) == Path(text.output) / "pipeline"
    assert (text.prompts.max_subjects, text.prompts.attention_loss_weight) == (0, 0)
    assert (multimodal.prompts.plain_share, multimodal.prompts.attention_loss_weight > 0) == (0.1, True)
    for values in (text, multimodal):
        assert (values.model.conditioner, values.model.trainable, values.model.class_dropout_prob) == (
            *("interleaved", None, 0.1),
        )
    if scale == "xl2":
        assert (multimodal.preview.guidance_scale, multimodal.preview.num_inference_steps) == (5.0, 50)
        assert (multimodal.prompts.pictures, multimodal.prompts.max_subjects) == ("crop", 4)
        assert multimodal.prompts.counts == "unimo"


def test_each_step_of_styles_by_pictures_begins_with_the_one_before(parsed: dict[str, Any]) -> None:
    """The last learns grounds and styles from the model before it, and all else from what the first made."""
    chain = [parsed[name] for name in ("scenes64_image_encoder", "umm_scenes64_style", "scenes64_styles", JOINING)]
    for before, after in pairwise(chain):
        assert Path(after.model.pretrained) == Path(before.output) / "pipeline"
    assert chain[0].model.pretrained in bundled_models()
    last, kept = chain[-1], chain[1].model.pretrained  # the latter knows all but grounds and styles
    assert {last.distillation.text, last.distillation.no_prompt, last.distillation.pictures} == {kept}
    assert last.model.weights_from == {"blocks.*.cross": kept}
    assert last.distillation.ground == last.model.pretrained


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_configuration_says_what_it_is_for(name: str) -> None:
    assert CONFIGS[name].read_text(encoding="utf-8").startswith("#")


ABLATIONS = sorted((CONFIGS["debug"].parent / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_variant_of_a_table_is_a_recipe_of_its_own(path: Path) -> None:
    """All options are understood, networks are built, and each differs from the first, which is the base's recipe."""
    assert path.read_text(encoding="utf-8").startswith("#")
    table = read_table(path)
    plans = plan_all(table, list(table.variants), Path("outputs"), Path("latents"), table.samples)
    first, *others = (plan.options for plan in plans.values())
    assert all(options != first for options in others)
    recorded = [json.dumps(dict(options), sort_keys=True) for options in (first, *others)]
    assert len(set(recorded)) == len(recorded)
    for plan in plans.values():
        config = plan.config
        assert (
            plan.steps[-1]
            == config.trainer.max_steps
            == round(table.samples * plan.variant.share / config.data.batch_size)
        )
        assert (config.trainer.validate_every, config.preview.num_samples, config.seed) == (0, 0, 0)
        TaskMixture(config.task.mixture, list(MODALITIES), config.task.absent_share)
        with torch.device("meta"):
            build = {"latent_size": 16, "in_channels": 4, "num_classes": 10, "feature_dim": 8}
            network = make_transformer(config, modalities=["rgb", "depth", "normal", "segmentation"], **build)
            make_optimizer(network, config.optimizer)
