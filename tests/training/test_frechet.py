"""Post-training on the Fréchet distance of features, in steps of a tiny network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.errors import UserError
from mmdit.flow.frechet_loss import Moments
from mmdit.metrics.frechet import frechet_distance
from mmdit.modalities import MODALITIES
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.task import Role, TaskMixture
from mmdit.training.config import DataConfig, FrechetConfig, ModelConfig, ObjectiveConfig, TaskConfig, TrainingConfig
from mmdit.training.recipes import build_run

Configure = Callable[..., TrainingConfig]


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """Of 4 x 4 tokens, as the debug network has."""
    torch.manual_seed(3)
    SceneTeacher(2, 3, image_size=16, patch_size=4, hidden_size=8, depth=1, num_heads=2).save_pretrained(tmp_path / "t")
    return str(tmp_path / "t")


def configured(tiny_config: Configure, teacher: str | None, **sections: Any) -> TrainingConfig:
    settings = {"teacher": teacher, "share": 1.0, "num_samples": 8, **sections.pop("frechet", {})}
    task = TaskConfig({"joint": 1.0}, absent_share=0.0)
    return tiny_config(**{"task": task, "frechet": FrechetConfig(**settings), "alignment": None, **sections})


def test_it_counts_when_enough_was_sampled(tiny_config: Configure, teacher: str) -> None:
    run = build_run(configured(tiny_config, teacher))
    module, batch = run.module.train(), next(iter(run.data.train_dataloader()))
    plain = build_run(configured(tiny_config, teacher, frechet={"weight": 0.0})).module.train()
    plain.network.load_state_dict(module.network.state_dict())
    for number, counts in enumerate((False, True, True)):  # 4 samples a step
        ours, theirs = (each.losses(batch, torch.Generator().manual_seed(number)) for each in (module, plain))
        expected = theirs["loss"] + counts * ours["frechet"] / (ours["frechet"] + 0.01)
        torch.testing.assert_close(ours["loss"], expected)
    ours["loss"].backward()
    assert all(torch.isfinite(each.grad).all() for each in module.network.parameters() if each.grad is not None)
    assert "frechet" not in module.eval().losses(batch, torch.Generator().manual_seed(0))


def test_the_distance_is_of_what_the_pipeline_samples(tiny_config: Configure, teacher: str, tmp_path: Path) -> None:
    """Two steps of a flow map, the pictures' features against those of the whole data."""
    config = configured(
        tiny_config,
        teacher,
        frechet={"num_inference_steps": 2, "num_samples": 10_000},
        model=ModelConfig(size="debug", second_time=True),
        objective=ObjectiveConfig(
            name="solution_flow", settings={"share": 0.5}, prediction="sample", sampling_shift=3.0
        ),
    )
    run = build_run(config)
    with torch.no_grad():
        for parameter in run.module.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    run.export(tmp_path / "pipeline")
    pipe = MultimodalDiTPipeline.from_pretrained(tmp_path / "pipeline")
    module, batch = run.module.train(), next(iter(run.data.train_dataloader()))
    draws = []
    objective = module.objective
    module.objective = lambda network, clean, conditioning, draw, *rest: (
        draws.append(draw),
        objective(network, clean, conditioning, draw, *rest),
    )[1]
    module.objective.draw, module.objective.needs_null = objective.draw, False
    distance = module.losses(batch, torch.Generator().manual_seed(0))["frechet"]
    (draw,) = draws

    labels = torch.where(draw.prompt_draw < 0.1, -1, batch["category"]).tolist()
    made = pipe(
        class_labels=[None if label < 0 else label for label in labels],
        latents=draw.noise,
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="latent",
    )
    network, codec = module.frechet.features, module.codec
    with torch.no_grad():
        ours = Moments.of(network.pooled(codec.decode(made.latents[:, 0], "rgb")))
        clean = [
            codec.latents(run.data.train[i]["moments"][None, 0].float(), "rgb") for i in range(len(run.data.train))
        ]
        theirs = Moments.of(network.pooled(torch.cat([codec.decode(each, "rgb") for each in clean])))
    expected = frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
    assert float(distance) == pytest.approx(expected, rel=1e-4)


def test_it_falls_where_it_is_minimised(tiny_config: Configure, teacher: str) -> None:
    """Beside an objective that weighs nothing."""
    objective = ObjectiveConfig(prediction="sample", loss_weights=dict.fromkeys(MODALITIES, 1e-9))
    config = configured(tiny_config, teacher, frechet={"num_samples": 16, "decay": 0.5}, objective=objective)
    run = build_run(replace(config, data=DataConfig(batch_size=16)))
    with torch.no_grad():  # something to be far off
        for parameter in run.module.network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    module, batch = run.module.train(), next(iter(run.data.train_dataloader()))
    optimizer = torch.optim.Adam(module.network.parameters(), lr=3e-3)
    distances = []
    for number in range(40):
        losses = module.losses(batch, torch.Generator().manual_seed(number))
        distances.append(float(losses["frechet"]))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert sum(distances[-5:]) < 0.5 * sum(distances[4:9])


def test_a_batch_of_conditions_alone_is_not_sampled(tiny_config: Configure, teacher: str) -> None:
    run = build_run(configured(tiny_config, teacher))
    module, batch = run.module.train(), next(iter(run.data.train_dataloader()))
    module.objective.mixture = TaskMixture({"rgb_given": 1.0}, list(MODALITIES))
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    assert torch.isnan(losses["frechet"])
    assert torch.isfinite(losses["loss"])
    losses["loss"].backward()
    assert module.frechet.running.count == 0


def test_the_same_samples_are_chosen_however_many_processes_share_them(tiny_config: Configure, teacher: str) -> None:
    loss = build_run(configured(tiny_config, teacher, frechet={"share": 0.25})).module.frechet
    roles = torch.full((16, 4), int(Role.GENERATE))
    roles[[0, 3, 4], 1] = int(Role.CONDITION)
    assert loss.chosen(roles).nonzero().flatten().tolist() == [1, 2, 5, 6]
    assert not loss.chosen(torch.full((4, 4), int(Role.CONDITION))).any()


def test_a_checkpoint_of_a_run_without_it_begins_anew(tiny_config: Configure, teacher: str) -> None:
    module = build_run(configured(tiny_config, teacher)).module
    module.on_load_checkpoint({"batches_seen": 3})
    assert module.frechet.running.moments is None


def test_a_checkpoint_has_the_moments(tiny_config: Configure, teacher: str) -> None:
    modules = [build_run(configured(tiny_config, teacher)).module.train() for _ in range(2)]
    batch = next(iter(build_run(configured(tiny_config, teacher)).data.train_dataloader()))
    for number in range(3):
        modules[0].losses(batch, torch.Generator().manual_seed(number))
    checkpoint: dict[str, Any] = {}
    modules[0].on_save_checkpoint(checkpoint)
    modules[1].on_load_checkpoint(checkpoint)
    ours, theirs = (each.losses(batch, torch.Generator().manual_seed(9))["loss"] for each in modules)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "sections", "message"),
    [
        ({"teacher": None}, {}, "frechet.teacher is null, and model.pretrained has no feature network of its own"),
        ({"teacher": "nowhere"}, {}, "nowhere"),
        ({}, {"task": TaskConfig({"rgb_given": 1.0})}, "which task.mixture never draws: give it the task joint"),
        ({"decay": 1.0}, {}, "frechet.decay is 1: give a number from 0 to below 1"),
        ({}, {"model": ModelConfig(size="debug", modalities=["depth", "normal"])}, "frechet needs the modality 'rgb'"),
    ],
)
def test_what_can_not_be_had_is_named(
    tiny_config: Configure, teacher: str, settings: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    config = configured(tiny_config, teacher, **sections)
    with pytest.raises(UserError, match=message):
        build_run(replace(config, frechet=replace(config.frechet, **settings)))
