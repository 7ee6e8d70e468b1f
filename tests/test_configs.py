"""Every configuration that is shipped is one that the command takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmdit.cli.common.parsing import build_parser
from mmdit.cli.main import COMMANDS
from mmdit.flow.timesteps import make_timestep_sampler
from mmdit.models.config import get_size
from mmdit.models.transformer import MultimodalDiT
from mmdit.task import TaskMixture

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


LARGE = {"imagenet256_xl2.yaml", "imagenet256_xl2_plus.yaml", "hypersim_understanding.yaml", "hypersim_depth2rgb.yaml"}


def test_there_are_configurations():
    assert {"debug.yaml", "scenes64.yaml"} | LARGE <= {path.name for path in CONFIGS}


@pytest.fixture(scope="module")
def parsed():
    """Every configuration, as the command sees it, by name."""
    command = COMMANDS["train"]
    parser = build_parser(command.load(), "mmdit train", command.positional, command.config)
    return {path.name: parser.instantiate(parser.parse_args(["--config", str(path)])) for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_parses(path, parsed):
    values = parsed[path.name]
    assert values.output is not None
    assert values.trainer.max_steps >= 1


@pytest.mark.parametrize("name", sorted(LARGE - {"imagenet256_xl2_plus.yaml"}))
def test_published_recipes_keep_what_was_published(name, parsed):
    """arXiv 2503.20644 and the official training scripts."""
    values = parsed[name]
    assert (values.model.size, values.model.patch_size) == ("XL", 2)
    assert values.model.modalities == ["rgb", "depth", "normal", "segmentation"]
    assert (values.model.qk_norm, values.model.position_embedding) == (None, "sincos")
    assert (values.model.class_dropout_prob, values.model.drop_class_given_rgb) == (0.1, False)
    assert (values.objective.prediction, values.objective.timesteps) == ("velocity", "uniform")
    assert values.objective.loss_weights == {"rgb": 1.0, "depth": 0.2, "normal": 0.1, "segmentation": 0.1}
    assert values.objective.pure_noise_share == 0
    assert (values.alignment.weight, values.alignment.depth, values.alignment.hidden_size) == (0.5, 8, 2048)
    assert values.alignment.teacher == "vit_base_patch14_dinov2"
    optimizer = values.optimizer
    assert (optimizer.name, optimizer.lr, tuple(optimizer.betas)) == ("adamw", 1e-4, (0.9, 0.999))
    assert (optimizer.weight_decay, optimizer.warmup_steps, optimizer.schedule) == (0.0, 0, "constant")
    assert (values.data.batch_size, values.data.whitening) == (256, "vae")
    assert (values.trainer.gradient_clip_val, values.trainer.accumulate_grad_batches) == (1.0, 1)
    assert values.ema.decay == 0.9999
    expected = {
        "imagenet256_xl2.yaml": (600_000, "mmgen", 0.01, None),
        "hypersim_understanding.yaml": (20_000, "understanding", 0.0, "runs/imagenet256_xl2/pipeline"),
        "hypersim_depth2rgb.yaml": (5_000, "mmgen", 0.01, "runs/imagenet256_xl2/pipeline"),
    }
    condition_time = values.objective.max_condition_time
    found = (values.trainer.max_steps, values.task.mixture, condition_time, values.model.pretrained)
    assert found == expected[name]


def test_our_recipe_at_scale(parsed):
    values = parsed["imagenet256_xl2_plus.yaml"]
    assert (values.model.size, values.model.qk_norm, values.model.position_embedding) == ("XL", "rms_norm", "rope")
    assert (values.task.mixture, values.objective.timesteps) == ("any_to_any", "logit_normal")
    assert (values.trainer.precision, values.data.whitening) == ("bf16-mixed", "dataset")


@pytest.mark.parametrize("name", sorted(LARGE))
def test_large_networks_are_built_as_configured(name, parsed):
    """On the meta device: 28 blocks of width 1152, 16 heads; four heads, the embeddings and a projector of 8 M."""
    values = parsed[name]
    settings = get_size(values.model.size) | {
        "modalities": values.model.modalities,
        "qk_norm": values.model.qk_norm,
        "position_embedding": values.model.position_embedding,
        "prediction": values.objective.prediction,
        "alignment_depth": values.alignment.depth,
        "alignment_hidden_size": values.alignment.hidden_size,
    }
    with torch.device("meta"):
        network = MultimodalDiT(**settings)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(694.4e6, rel=1e-3)
    TaskMixture(values.task.mixture, values.model.modalities, values.task.absent_share)
    make_timestep_sampler(values.objective.timesteps, **values.objective.timestep_settings)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_says_what_it_is_for(path):
    assert path.read_text(encoding="utf-8").startswith("#")
