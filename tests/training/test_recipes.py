"""What the recipes build and refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmdit.data.synthetic import SyntheticLatents
from mmdit.errors import UserError
from mmdit.flow.objective import FlowDraw
from mmdit.flow.schedulers import jumps, shift_of
from mmdit.modalities import MODALITIES
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.task import Role
from mmdit.training.config import (
    AlignmentConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TaskConfig,
    TrainerConfig,
    TrainingConfig,
)
from mmdit.training.module import TransformerModule
from mmdit.training.recipes import build_run
from mmdit.training.recipes.transformer import without_projector
from mmdit.training.run import compile_network, fit, make_trainer
from mmdit.training.strategies import STRATEGIES, check_processes

Configure = Callable[..., TrainingConfig]


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"recipe": "transformr"}, "unknown recipe 'transformr'"),
        ({"model": ModelConfig(size="nan0")}, "unknown model size"),
        ({"model": ModelConfig(size="debug", qk_norm="l2")}, "qk_norm"),
        ({"model": ModelConfig(size="debug", position_embedding="learned")}, "position_embedding"),
        ({"model": ModelConfig(size="debug", modalities=["rgb", "flow"])}, "unknown modality 'flow'"),
        ({"alignment": AlignmentConfig(depth=9)}, "alignment_depth is 9"),
        ({"alignment": AlignmentConfig(depth=1, projector="linear")}, "unknown alignment_projector 'linear'"),
        ({"alignment": AlignmentConfig(depth=1, distance="l2")}, "unknown alignment.distance 'l2'"),
        (
            {"model": ModelConfig(size="debug", internal_guidance_depth=2)},
            "internal_guidance_depth is 2: give 1 to less",
        ),
        (
            {"objective": ObjectiveConfig(internal_guidance_scale=1.5)},
            "objective.internal_guidance_scale is 1.5: this model",
        ),
        ({"task": TaskConfig(mixture="mmgenn")}, "unknown task mixture"),
        ({"task": TaskConfig(mixture={"joint": -1.0})}, "is -1.0"),
        ({"task": TaskConfig(mixture={"joint": float("nan")})}, "weight of task 'joint' is nan"),
        ({"objective": ObjectiveConfig(prediction="noise")}, "prediction"),
        ({"objective": ObjectiveConfig(timesteps="mixed", timestep_settings={"std": -1.0})}, "std of .* is -1.0"),
        ({"objective": ObjectiveConfig(timesteps="logit_normal", timestep_settings={"mean": float("nan")})}, "mean of"),
        (
            {"objective": ObjectiveConfig(loss_weights={"rgb": -1.0})},
            "loss_weights.rgb is -1: give a number, at least 0",
        ),
        ({"objective": ObjectiveConfig(loss_weights={"depth": float("inf")})}, "loss_weights.depth is inf"),
        (
            {"objective": ObjectiveConfig(loss_weights=dict.fromkeys(MODALITIES, 0.0))},
            "loss_weights are 0 for all of rgb, depth, normal, segmentation",
        ),
        ({"objective": ObjectiveConfig(timesteps="cosine")}, "timestep distribution"),
        (
            {"objective": ObjectiveConfig(name="mean_flow")},
            "objective.name mean_flow trains steps .*, and the network has one time: set model.second_time: true",
        ),
        (
            {
                "model": ModelConfig(size="debug", second_time=True, internal_guidance_depth=1),
                "objective": ObjectiveConfig(name="mean_flow"),
            },
            "objective.name mean_flow takes the network's derivative",
        ),
        (
            {
                "model": ModelConfig(size="debug", second_time=True),
                "objective": ObjectiveConfig(name="solution_flow", settings={"num_inference_steps": 20_000}),
            },
            "num_inference_steps is 20000: give a whole number from 1 to 10000",
        ),
        ({"objective": ObjectiveConfig(name="soflow")}, "unknown objective 'soflow': did you mean 'flow'"),
        ({"objective": ObjectiveConfig(timesteps="uniform", timestep_settings={"mean": 1.0})}, "does not take"),
        ({"objective": ObjectiveConfig(loss_weights={"rgbd": 1.0})}, "loss_weights"),
        ({"data": DataConfig(path="nowhere")}, r"nowhere/latents\.json: no such file"),
        ({"recipe": "autoencoder"}, "needs a dataset folder"),
        (
            {"model": ModelConfig(size="debug", hidden_size=64, num_heads=5)},
            "^model: hidden_size 64 .*: give num_heads 4",
        ),
        ({"model": ModelConfig(size="debug", hidden_size=6)}, "^model: hidden_size 6 must be a multiple of 4"),
        ({"optimizer": OptimizerConfig(name="foo")}, "unknown optimizer.name 'foo'"),
        ({"optimizer": OptimizerConfig(schedule="foo")}, "unknown optimizer.schedule 'foo'"),
        ({"trainer": TrainerConfig(strategy="dpp")}, "unknown trainer.strategy 'dpp': did you mean 'ddp'"),
        ({"trainer": TrainerConfig(strategy="ddp_spawn")}, "unknown trainer.strategy 'ddp_spawn': did you mean 'ddp"),
        *(
            ({"trainer": TrainerConfig(devices=devices)}, f"^trainer.devices is {devices}: give how many")
            for devices in (0, -2, 5000, "0", "some", "1.5", "")
        ),
    ],
)
def test_bad_sections_are_named(tiny_config: Configure, section: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        build_run(tiny_config(**section))


def test_trainer_settings_that_do_not_fit_are_refused(tmp_path: Path, tiny_config: Configure) -> None:
    config = tiny_config()
    config.trainer.accelerator = "cuda" if not torch.cuda.is_available() else "tpu"
    with pytest.raises(UserError, match="do not fit this machine"):
        fit(build_run(config), config.trainer, config.ema, tmp_path, None)


@pytest.mark.parametrize("devices", ["auto", -1, "-1", 1, "2", "0,1", "0,", "1, 3"])
def test_devices_are_a_number_or_a_list(devices: int | str) -> None:
    check_processes(TrainerConfig(devices=devices))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_makes_a_trainer(tiny_config: Configure, strategy: str) -> None:
    config = replace(tiny_config().trainer, strategy=strategy)
    assert make_trainer(config, None, None, build_run(tiny_config()).data, []).world_size == 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("foo", "unknown value of the environment variable MMDIT_KERNELS 'foo': .*Known: auto, triton, torch"),
        ("Torch", "MMDIT_KERNELS 'Torch': did you mean 'torch'"),
        ("triton", "MMDIT_KERNELS is 'triton': .*give auto or torch"),
    ],
)
def test_kernels_that_can_not_run_are_refused_before_the_first_step(
    tmp_path: Path, tiny_config: Configure, monkeypatch: pytest.MonkeyPatch, value: str, named: str
) -> None:
    monkeypatch.setenv("MMDIT_KERNELS", value)
    config = tiny_config()
    with pytest.raises(UserError, match=named):
        fit(build_run(config), config.trainer, config.ema, tmp_path, None)
    assert not (tmp_path / "checkpoints").exists()


def test_labels_are_hidden_beside_rgb(tiny_config: Configure) -> None:
    model = ModelConfig(size="debug", drop_class_given_rgb=True, class_dropout_prob=0.0)
    module = build_run(tiny_config(model=model)).module
    assert isinstance(module, TransformerModule)
    roles = torch.tensor([[Role.CONDITION, 0, 0, 0], [Role.GENERATE, Role.CONDITION, 0, 0]])
    draw = FlowDraw(roles, torch.ones(2), torch.zeros(2), torch.zeros(2, 4, 1, 1, 1), prompt_draw=torch.ones(2))
    assert module._prompt({"category": torch.tensor([3, 2])}, draw).tolist() == [-1, 2]


@pytest.mark.parametrize("name", ["flow", "solution_flow"])
def test_every_weight_that_is_trained_has_a_gradient(tiny_config: Configure, name: str) -> None:
    """DDP waits for them; the embedding of a second time has none where the objective takes no steps."""
    config = tiny_config(
        model=ModelConfig(size="debug", second_time=True), objective=ObjectiveConfig(name=name, prediction="sample")
    )
    run = build_run(config)
    run.module.losses(next(iter(run.data.train_dataloader())), torch.Generator().manual_seed(0))["loss"].backward()
    without = [
        key for key, value in run.module.network.named_parameters() if value.requires_grad != (value.grad is not None)
    ]
    assert without == []
    assert all(p.requires_grad == (name != "flow") for p in run.module.network.next_time_embed.parameters())


def test_a_step_depends_on_seed_and_batch_number_alone(tiny_config: Configure) -> None:
    module = build_run(tiny_config()).module
    batch = next(iter(build_run(tiny_config()).data.train_dataloader()))
    module.eval()
    torch.manual_seed(1)
    first = module.losses(batch, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    second = module.losses(batch, torch.Generator().manual_seed(5))
    other = module.losses(batch, torch.Generator().manual_seed(6))
    assert torch.equal(first["loss"], second["loss"])
    assert not torch.equal(first["loss"], other["loss"])
    assert set(first) == {"loss", "alignment", *(f"loss/{n}" for n in ("rgb", "depth", "normal", "segmentation"))}


def test_alignment_with_features_that_are_normalised(tiny_config: Configure) -> None:
    config = AlignmentConfig(depth=1, projector="conv", spatial_norm=0.6, weight=0.25)
    module = build_run(tiny_config(alignment=config)).module.eval()
    batch = next(iter(build_run(tiny_config()).data.train_dataloader()))
    tapped: list[torch.Tensor] = []
    module.network.projector.register_forward_hook(lambda layer, args, output: tapped.append(output))
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    features = batch["features"]
    target = (features - 0.6 * features.mean(1, keepdim=True)) / features.std(1, keepdim=True)
    expected = 1 - torch.cosine_similarity(tapped[0], target, dim=-1).mean()
    torch.testing.assert_close(losses["alignment"], expected)
    flow = sum(weight * losses[f"loss/{name}"] for name, weight in module.objective.loss_weights.items())
    torch.testing.assert_close(losses["loss"], flow + 0.25 * expected)


def test_alignment_with_the_latents_needs_no_features(tiny_config: Configure) -> None:
    """Each modality's own patch of the clean latent; what is missing, or ABSENT in this step, is not aligned with."""
    config = AlignmentConfig(depth=1, hidden_size=16, teacher="latents")
    run = build_run(tiny_config(alignment=config))
    module, batch = run.module.eval(), next(iter(run.data.train_dataloader()))
    batch.pop("features", None)
    batch["present"][:, 1:] = False
    batch["moments"][:, 1:, :4] = 7.0
    tapped: list[torch.Tensor] = []
    module.network.projector.register_forward_hook(lambda layer, args, output: tapped.append(output))
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    clean = module.codec.latents_all(batch["moments"].float())[:, 0]  # (B, C, h, w) of rgb
    errors = []
    for row in range(4):
        for column in range(4):
            patch = clean[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            errors.append(1 - torch.cosine_similarity(tapped[0][:, 4 * row + column, :16], patch, dim=-1))
    torch.testing.assert_close(losses["alignment"], torch.stack(errors).mean())


def test_the_middle_block_has_the_loss_of_the_last_one(tiny_config: Configure, tmp_path: Path) -> None:
    model = ModelConfig(size="debug", internal_guidance_depth=1, class_dropout_prob=0.0)
    objective = ObjectiveConfig(prediction="sample", internal_guidance_weight=0.25, internal_guidance_scale=1.4)
    run = build_run(tiny_config(model=model, objective=objective, alignment=None))
    module, batch = run.module.eval(), next(iter(run.data.train_dataloader()))
    for layer in module.network.internal_head.linears:
        torch.nn.init.normal_(layer.weight, std=0.1)
    predicted: list[torch.Tensor] = []
    module.network.internal_head.register_forward_hook(lambda layer, args, output: predicted.append(output))
    losses = module.losses(batch, torch.Generator().manual_seed(3))
    assert len(predicted) == 1
    draw = module.objective.draw(4, (4, 4, 8, 8), torch.Generator().manual_seed(3))
    clean = module.codec.latents_all(batch["moments"].float(), noise=draw.posterior_noise)
    expected = 0.0
    for row, weight in enumerate(module.objective.loss_weights.values()):
        given = draw.roles[:, row] == Role.GENERATE
        error = (predicted[0][given, row] - clean[given, row]).square().mean((1, 2, 3)) / draw.t[given].clamp(min=0.1)
        expected = expected + weight * error.mean() if given.any() else expected
    torch.testing.assert_close(losses["internal"], expected)
    flow = sum(weight * losses[f"loss/{name}"] for name, weight in module.objective.loss_weights.items())
    torch.testing.assert_close(losses["loss"], flow + 0.25 * expected)
    losses["loss"].backward()
    assert module.network.internal_head.linears[0].weight.grad.abs().sum() > 0
    run.export(tmp_path / "pipeline")
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path / "pipeline")
    assert loaded.defaults.internal_guidance_scale == 1.4
    assert torch.equal(
        loaded.transformer.internal_head.linears[0].weight, module.network.internal_head.linears[0].weight
    )


def test_a_middle_head_that_is_frozen_has_no_loss(tiny_config: Configure) -> None:
    """What else is trained, such as a LoRA of a model with such a head, is trained as without it; or the head alone."""
    model = ModelConfig(size="debug", internal_guidance_depth=1)
    losses = {}
    for trainable in (["blocks"], ["internal_head"]):
        run = build_run(tiny_config(model=replace(model, trainable=trainable), alignment=None))
        batch = next(iter(run.data.train_dataloader()))
        step = run.module.losses(batch, torch.Generator().manual_seed(0))
        step["loss"].backward()
        losses[trainable[0]] = step
        named = {name for name, weight in run.module.network.named_parameters() if weight.grad is not None}
        assert named
        assert all(name.startswith(f"{trainable[0]}.") for name in named)
    assert "internal" not in losses["blocks"]
    assert losses["internal_head"]["internal"] > 0


def test_missing_modalities_do_not_touch_the_loss(tiny_config: Configure) -> None:
    """Whatever stands in for a missing modality is replaced by noise, and is no target."""
    module = build_run(tiny_config(alignment=None)).module.eval()
    torch.nn.init.normal_(module.network.head.linears[0].weight)
    batch = next(iter(build_run(tiny_config()).data.train_dataloader()))
    batch["present"][:, 1] = False
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    batch["moments"][:, 1] = 1e3
    batch["moments"][:, 1, 4:] = 0.0
    again = module.losses(batch, torch.Generator().manual_seed(0))
    assert losses["loss/depth"] == 0
    assert torch.equal(losses["loss"], again["loss"])


def test_projector_is_left_out_of_the_export() -> None:
    model = MultimodalDiT(
        sample_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=3, alignment_depth=1, alignment_dim=8
    )
    copy = without_projector(model.config, model.state_dict())
    assert copy.projector is None
    assert copy.config.alignment_depth is None
    assert {k for k in model.state_dict() if k not in copy.state_dict()} == {
        k for k in model.state_dict() if k.startswith("projector.")
    }


def test_networks_are_compiled_block_by_block(tiny_config: Configure) -> None:
    network = build_run(tiny_config()).module.network
    names = list(network.state_dict())
    compile_network(network)
    assert network._compiled_call_impl is None
    assert all(block._compiled_call_impl is not None for block in network.blocks)
    assert list(network.state_dict()) == names
    whole = torch.nn.Linear(2, 2)
    compile_network(whole)
    assert whole._compiled_call_impl is not None


def test_pretrained_weights_start_a_run(tmp_path: Path, tiny_config: Configure) -> None:
    config = tiny_config(max_steps=2)
    folder = fit(build_run(config), config.trainer, config.ema, tmp_path / "first", None)
    start = ModelConfig(size="debug", pretrained=str(folder))
    continued = build_run(tiny_config(model=start)).module.network
    stored = MultimodalDiT.from_pretrained(folder / "transformer")
    for name, weight in stored.state_dict().items():
        assert torch.equal(weight, continued.state_dict()[name])
    with pytest.raises(UserError, match="does not fit the model section"):
        build_run(tiny_config(model=ModelConfig(size="debug", depth=1, pretrained=str(folder)), alignment=None))
    with pytest.raises(UserError, match="give a pipeline folder"):
        build_run(tiny_config(model=ModelConfig(size="debug", pretrained=str(tmp_path))))


def test_one_modality_starts_a_run_with_four(tmp_path: Path, tiny_config: Configure) -> None:
    """What `mmdit convert repa` writes; the RGB output is the same whatever the other modalities are and do."""
    size = {
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "sample_size": 8,
        "num_classes": SyntheticLatents.num_classes,
    }
    trained = MultimodalDiT(modalities=["rgb"], time_embedding="sum", **size)
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    trained.save_pretrained(tmp_path / "repa" / "transformer")
    folder = str(tmp_path / "repa")
    start = ModelConfig(size="debug", time_embedding="sum", pretrained=folder)
    network = build_run(tiny_config(model=start, objective=ObjectiveConfig(), alignment=None)).module.network
    latents, t, roles = torch.randn(3, 4, 4, 8, 8), torch.rand(3, 4), torch.randint(len(Role), (3, 4))
    with torch.no_grad():
        out = network(latents, t, roles, network.conditioner([0, 1, None])).sample
        expected = trained(latents[:, :1], t[:, :1], roles[:, :1], trained.conditioner([0, 1, None])).sample
    assert expected.abs().max() > 0.5
    assert (out[:, :1] - expected).abs().max() < 1e-6 * expected.abs().max()
    with pytest.raises(UserError, match="time_embedding is 'sum' in the trained model and 'fused' here"):
        build_run(tiny_config(model=ModelConfig(size="debug", pretrained=folder)))


def test_few_steps_are_trained_on_from_a_model_of_one_time(tmp_path: Path, tiny_config: Configure) -> None:
    """Bit for bit as a run that was stopped half-way; the folder says how its model samples."""
    first = tiny_config(max_steps=1, checkpoint_every=1, alignment=None)
    folder = fit(build_run(first), first.trainer, first.ema, tmp_path / "first", None)
    settings = {"guidance_scale": 2.0, "num_inference_steps": 3, "first_ratio": 0.2}

    def config() -> TrainingConfig:
        return tiny_config(
            max_steps=2,
            checkpoint_every=1,
            alignment=None,
            model=ModelConfig(size="debug", second_time=True, pretrained=str(folder)),
            objective=ObjectiveConfig(
                name="solution_flow", settings=settings, prediction="sample", timesteps="mixed", sampling_shift=3.0
            ),
        )

    run = build_run(config())
    whole = fit(run, config().trainer, config().ema, tmp_path / "whole", None)
    assert whole is not None
    module = run.module
    assert isinstance(module, TransformerModule)
    losses = module.losses(next(iter(run.data.train_dataloader())), torch.Generator().manual_seed(0))
    assert {"loss/rgb", "jump/rgb"} < set(losses)
    (tmp_path / "stopped/checkpoints").mkdir(parents=True)
    name = "checkpoints/step=00000001.ckpt"
    shutil.copy(tmp_path / "whole" / name, tmp_path / "stopped" / name)
    resumed = fit(build_run(config()), config().trainer, config().ema, tmp_path / "stopped", "auto")
    assert resumed is not None
    weights = [load_file(each / "transformer/diffusion_pytorch_model.safetensors") for each in (whole, resumed)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert any("next_time_embed" in key and value.abs().max() > 0 for key, value in weights[0].items())

    pipe = MultimodalDiTPipeline.from_pretrained(whole)
    assert (jumps(pipe.scheduler), shift_of(pipe.scheduler)) == (True, 3.0)
    assert (pipe.defaults.num_inference_steps, pipe.defaults.guidance_scale) == (3, 1.0)  # it is in the network
    pipe.set_progress_bar_config(disable=True)
    assert torch.isfinite(pipe(class_labels=1, output_type="latent", seed=0).latents).all()
    assert pipe.num_timesteps == 3
