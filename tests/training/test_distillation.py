"""Targets that trained models predict, in place of the data's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmdit.conditioning import NO_SUBJECT, Conditioning, EncodedPrompts
from mmdit.encoders.hidden_layer import LAYER_KEY
from mmdit.errors import UserError
from mmdit.flow.path import linear_path
from mmdit.models.prompted import PromptInputs
from mmdit.models.transformer import MultimodalDiT
from mmdit.training.config import (
    DataConfig,
    DistillationConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptsConfig,
    TrainingConfig,
)
from mmdit.training.distillation import PROMPT_KINDS, Distillation, kinds_of
from mmdit.training.recipes import build_run
from mmdit.training.run import fit

PROMPTED = ModelConfig(size="debug", block="cross", conditioner="tiue", class_dropout_prob=0.2)


def test_the_kind_of_a_prompt_is_what_its_tokens_are() -> None:
    vector = torch.zeros(4, 8)
    mask = torch.tensor([[False, False], [True, False], [True, True], [False, True]])
    ids = torch.tensor([[NO_SUBJECT, NO_SUBJECT], [NO_SUBJECT, NO_SUBJECT], [NO_SUBJECT, 3], [0, NO_SUBJECT]])
    tokens = torch.zeros(4, 2, 8)
    kinds = [PROMPT_KINDS[number] for number in kinds_of(Conditioning(vector, tokens, mask, ids))]
    assert kinds == ["no_prompt", "text", "pictures", "pictures"]
    told = kinds_of(
        Conditioning(vector, tokens, mask, ids), [True, True, False, True]
    )  # of words alone nothing is shown
    assert [PROMPT_KINDS[number] for number in told] == ["no_prompt", "text", "pictures", "ground"]
    assert [PROMPT_KINDS[number] for number in kinds_of(Conditioning(vector))] == ["no_prompt"] * 4
    assert [PROMPT_KINDS[number] for number in kinds_of(Conditioning(vector, tokens))] == ["text"] * 4


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_rows_with_a_teacher_are_on_the_line_that_it_predicts(prediction: str) -> None:
    """x_t = x̂_0 + t v̂ there, of what the teacher says at x_t; the other rows are the data's."""
    torch.manual_seed(0)
    names = ["rgb", "depth"]
    teacher = MultimodalDiT(modalities=names, sample_size=8, num_classes=5, prediction=prediction, **_debug())
    for weight in teacher.parameters():
        nn.init.normal_(weight, std=0.1)
    clean, noise, t = torch.randn(3, 2, 4, 8, 8), torch.randn(3, 2, 4, 8, 8), torch.rand(3, 2) * 0.8 + 0.1
    roles, labels = torch.zeros(3, 2, dtype=torch.int64), torch.tensor([1, -1, 4])
    conditioning = teacher.conditioner(labels)
    told = Conditioning(conditioning.vector, torch.zeros(3, 1, 32), torch.tensor([[False], [True], [False]]))
    path = linear_path(clean, noise, t)
    new_path, new = Distillation({"no_prompt": teacher})(path, clean, roles, prompt=labels, conditioning=told)

    with torch.no_grad():
        output = teacher(path.x_t, t, roles, teacher.conditioner(labels)).sample
    at = t[:, :, None, None, None]
    expected = output if prediction == "sample" else path.x_t - at * output
    assert torch.equal(new[1], clean[1])
    assert torch.equal(new_path.velocity[1], path.velocity[1])
    assert torch.equal(new_path.x_t, path.x_t)
    torch.testing.assert_close(new[[0, 2]], expected[[0, 2]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new + at * new_path.velocity, path.x_t, atol=1e-5, rtol=1e-5)


def test_a_teacher_reads_prompts_of_its_kinds_alone() -> None:
    """One of no prompts need not have ours, one of words no pictures' encoder; each predicts as it does by itself."""
    torch.manual_seed(0)

    def teacher(**settings: Any) -> MultimodalDiT:
        prompted = {"block": "cross", "conditioner": "tiue", "conditioner_settings": settings} if settings else {}
        made = MultimodalDiT(
            modalities=["rgb", "depth"], sample_size=8, num_classes=5, prediction="sample", **_debug(), **prompted
        )
        for weight in made.parameters():
            nn.init.normal_(weight, std=0.1)
        return made.eval()

    classes, words = teacher(), teacher(text_width=12, image_width=3)
    pictures = teacher(text_width=12, image_width=6)
    numbers = torch.tensor([[NO_SUBJECT] * 4, [NO_SUBJECT] * 4, [NO_SUBJECT, NO_SUBJECT, 0, NO_SUBJECT]])
    states = torch.randn(3, 4, 12)

    def restate(pseudo: Tensor) -> Tensor:
        return torch.where((numbers >= 0)[..., None], pseudo[numbers.clamp_min(0)], states)

    mask, present = torch.ones(3, 4, dtype=torch.bool), torch.tensor([False, True, True])
    prompts = EncodedPrompts(states, mask, numbers, torch.randn(1, 6), restate, present)
    prompt = PromptInputs(torch.tensor([2, -1, 1]), prompts)
    clean, t = torch.randn(3, 2, 4, 8, 8), torch.rand(3, 2) * 0.8 + 0.1
    path, roles = linear_path(clean, torch.randn(3, 2, 4, 8, 8), t), torch.zeros(3, 2, dtype=torch.int64)
    for kinds, network, rows in (
        (("no_prompt",), classes, [0]),
        (("no_prompt",), words, [0]),
        (("text",), words, [1]),
        (("no_prompt", "text"), words, [0, 1]),
        (("pictures",), pictures, [2]),
        (("ground",), pictures, []),
    ):
        taught = Distillation(dict.fromkeys(kinds, network))
        _, new = taught(path, clean, roles, prompt=prompt, conditioning=pictures.conditioner(prompt))
        assert [not torch.equal(one, other) for one, other in zip(new, clean, strict=True)] == [
            i in rows for i in range(3)
        ]
        own = prompt.class_labels if network is classes else prompt
        if network is words:
            own = PromptInputs(prompt.class_labels, prompts.text_only())
        with torch.no_grad():
            expected = network(path.x_t, t, roles, network.conditioner(own)).sample
        torch.testing.assert_close(new[rows], expected[rows], atol=1e-5, rtol=1e-5)


def test_pictures_of_ground_have_a_teacher_of_their_own(prompted, tmp_path: Path) -> None:
    """Where none is named it is that of all pictures. A batch says which samples are meant."""
    one, other = (str(trained(prompted(seed=seed), tmp_path / str(seed))) for seed in (1, 2))
    config = prompted(distillation=DistillationConfig(pictures=one))
    run = build_run(config)
    teachers = run.module.distillation.teachers
    assert set(teachers) == {"pictures", "ground"}
    assert teachers["ground"] is teachers["pictures"]
    batch = next(iter(run.data.train_dataloader()))
    assert 0 < sum(batch["shows_ground"]) < len(batch["id"])
    losses = {}
    for ground in (None, one, other):
        config.distillation = DistillationConfig(pictures=one, ground=ground)
        losses[ground] = losses_of(config)["loss"]
    assert losses[None] == losses[one] != losses[other]


def test_a_middle_head_asks_the_teachers_once(prompted, tmp_path: Path) -> None:
    teacher = str(trained(prompted(), tmp_path / "teacher"))
    model = replace(PROMPTED, internal_guidance_depth=1)
    run = build_run(prompted(model=model, distillation=DistillationConfig(text=teacher)))
    asked: list[int] = []
    (network,) = run.module.distillation.teachers.values()
    network.register_forward_hook(lambda *_: asked.append(1))
    losses = run.module.train().losses(next(iter(run.data.train_dataloader())), torch.Generator().manual_seed(0))
    assert losses["internal"] > 0
    assert len(asked) == 1


def _debug() -> dict[str, Any]:
    return {"in_channels": 4, "patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def prompted(prompt_folders, tiny_config):
    """A configuration of prompts; keyword arguments replace sections."""

    def make(**sections: Any) -> TrainingConfig:
        defaults = {
            "model": PROMPTED,
            "data": DataConfig(path=str(prompt_folders.latents), batch_size=16, val_split=None),
            "prompts": PromptsConfig(
                str(prompt_folders.data), str(prompt_folders.clip), pictures="either", plain_share=0.4, label_share=0.5
            ),
            "alignment": None,
        }
        return tiny_config(**{**defaults, **sections})

    return make


def trained(config: TrainingConfig, folder: Path) -> Path:
    """A pipeline whose weights are none of them zero, so that each kind of prompt counts."""
    pipeline = fit(build_run(config), replace(config.trainer, max_steps=1), None, folder, None)
    assert pipeline is not None
    weights = next((pipeline / "transformer").glob("*.safetensors"))
    torch.manual_seed(1)
    state = {name: value + 0.05 * torch.randn_like(value) for name, value in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})
    return pipeline


def losses_of(config: TrainingConfig) -> dict[str, float]:
    run = build_run(config)
    batch = next(iter(run.data.train_dataloader()))
    losses = run.module.train().losses(batch, torch.Generator().manual_seed(0))
    return {name: float(value.detach()) for name, value in losses.items()}


@pytest.mark.parametrize("objective", ["flow", "solution_flow"])
def test_a_model_has_nothing_to_learn_from_itself(prompted, tmp_path: Path, objective: str) -> None:
    """Where all kinds of prompts are taught by the model that it begins as, flow matching's loss is 0; without it is not."""
    settings = {"data_share": 0.0} if objective == "solution_flow" else {}
    model = replace(PROMPTED, second_time=objective != "flow")
    sections = {
        "objective": ObjectiveConfig(prediction="sample", name=objective, settings=settings),
        "model": model,
    }
    teacher = str(trained(prompted(**sections), tmp_path / "teacher"))
    sections["model"] = replace(model, pretrained=teacher)
    plain = losses_of(prompted(**sections))
    taught = losses_of(prompted(**sections, distillation=DistillationConfig(teacher, teacher, teacher)))
    flow = [name for name in plain if name.startswith("loss/")]
    assert len(flow) == 4
    for name in flow:
        assert plain[name] > 0.05
        assert taught[name] < 1e-9
    alone = losses_of(prompted(**sections, distillation=DistillationConfig(text=teacher)))
    assert 0.01 < alone["loss"] < 0.99 * plain["loss"]


def test_what_was_known_is_kept_and_the_rest_learned(prompted, tmp_path: Path) -> None:
    """A student of two teachers, of words and of pictures, comes nearer to both; its checkpoints hold neither."""
    one, other = (str(trained(prompted(seed=seed), tmp_path / str(seed))) for seed in (1, 2))
    config = prompted(
        max_steps=30,
        model=replace(PROMPTED, pretrained=one),
        distillation=DistillationConfig(no_prompt=one, text=one, pictures=other),
    )
    before = losses_of(config)["loss"]
    run = build_run(config)
    fit(run, config.trainer, None, tmp_path / "run", None)
    batch = next(iter(run.data.train_dataloader()))
    assert float(run.module.losses(batch, torch.Generator().manual_seed(0))["loss"].detach()) < 0.8 * before
    checkpoint = torch.load(next((tmp_path / "run/checkpoints").glob("step*.ckpt")), weights_only=True)
    assert set(checkpoint["state_dict"]) == set(run.module.state_dict())
    assert all(name.startswith("network.") for name in checkpoint["state_dict"])


def test_some_weights_begin_as_those_of_another_model(prompted, tmp_path: Path) -> None:
    """Those that weights_from names, and no others; of a model that has them, in their shapes."""
    one, other = (str(trained(prompted(seed=seed), tmp_path / str(seed))) for seed in (1, 2))
    model = replace(PROMPTED, pretrained=one, weights_from={"blocks.*.cross": other})
    begun = build_run(prompted(model=model)).module.network.state_dict()
    first, second = (load_file(next((Path(name) / "transformer").glob("*.safetensors"))) for name in (one, other))
    crossing = {name for name in begun if ".cross" in name}
    assert 0 < len(crossing) < len(begun)
    for name, weight in begun.items():
        assert torch.equal(weight, (second if name in crossing else first)[name]), name
    classes = str(trained(prompted(prompts=None, model=ModelConfig(size="debug")), tmp_path / "classes"))
    wide = str(trained(prompted(model=replace(PROMPTED, hidden_size=48, num_heads=3)), tmp_path / "wide"))
    for weights_from, message in (
        ({"nowhere": other}, "unknown beginning in model.weights_from 'nowhere'"),
        ({"blocks.*.cross": "nowhere"}, r"model.weights_from blocks.\*.cross: nowhere: give a pipeline folder"),
        (
            {"blocks.*.cross": classes},
            r"model.weights_from blocks.\*.cross: .*classes.*: blocks.0.cross.* and not there",
        ),
        ({"blocks.*.cross": wide}, r"wide.*: blocks.0.cross\S+ is \[32\S* .*here and \[48\S* .*there"),
    ):
        with pytest.raises(UserError, match=message):
            build_run(prompted(model=replace(model, weights_from=weights_from)))


def test_a_teacher_must_mean_the_same(prompted, prompt_folders, tmp_path: Path) -> None:
    teacher = trained(prompted(), tmp_path / "teacher")
    copies = partial(_copy, teacher, tmp_path)

    def named(folder: Path | str, kind: str = "text", **sections: Any) -> TrainingConfig:
        return prompted(**sections, distillation=DistillationConfig(**{kind: str(folder)}))

    def relabel(index: dict[str, Any]) -> None:
        index["id2label"]["0"] = "sofa"

    def rewhiten(index: dict[str, Any]) -> None:
        index["modalities"]["depth"]["latents_std"] = [2.0] * 4

    unprompted = prompted(prompts=None, model=ModelConfig(size="debug"))
    classes = trained(unprompted, tmp_path / "classes")
    three = ["rgb", "depth", "normal"]
    for config, message in (
        (
            prompted(distillation=DistillationConfig()),
            r"distillation names no model: give one of distillation\.no_prompt, .*ground, or distillation null",
        ),
        (named("nowhere"), "distillation.text nowhere: give a pipeline folder, with a subfolder transformer/"),
        (
            named(teacher, model=replace(PROMPTED, modalities=three)),
            r"distillation.text .*: modalities is \['rgb', .*'segmentation'\] there and \['rgb', 'depth', 'normal'\] here",
        ),
        (named(copies("names", relabel)), "its categories are not those of the data, in their order"),
        (named(copies("whitening", rewhiten)), r"depth is encoded otherwise than distillation\.text .*latents_std"),
        (named(classes), "its conditioner is 'class', that of model.conditioner 'tiue'"),
        (
            replace(named(classes), prompts=None, model=unprompted.model),
            "there are no prompts, give the section prompts",
        ),
        (named(copies("text", weights="text_encoder")), "its text_encoder is not the one that reads prompts here"),
        (named(copies("vae", weights="vae")), "latents of another VAE than that of distillation.text"),
    ):
        with pytest.raises(UserError, match=message):
            build_run(config)
    layered = copies("layered")
    config = json.loads((layered / "text_encoder/config.json").read_text())
    (layered / "text_encoder/config.json").write_text(json.dumps(config | {LAYER_KEY: 0}))
    depth = config.get("text_config", config)["num_hidden_layers"]
    with pytest.raises(
        UserError,
        match=f"takes the states of layer 0 of its text_encoder, and layer {depth} .* give prompts.hidden_layer 0",
    ):
        build_run(named(layered))
    eyes = copies("eyes", weights="image_encoder")
    with pytest.raises(UserError, match=r"pictures .*: its image_encoder is not the one that reads prompts here"):
        build_run(named(eyes, "pictures"))
    build_run(named(eyes, "text"))  # of words alone it is not asked
    build_run(named(copies("other", weights="text_encoder"), "no_prompt"))
    build_run(replace(named(classes, "no_prompt"), prompts=None, model=unprompted.model))


def _copy(teacher: Path, root: Path, name: str, edit=None, weights: str | None = None) -> Path:
    """The pipeline with another index, or other weights of a component."""
    folder = root / name
    shutil.copytree(teacher, folder)
    if edit is not None:
        index = json.loads((folder / "model_index.json").read_text())
        edit(index)
        (folder / "model_index.json").write_text(json.dumps(index))
    if weights is not None:
        path = next((folder / weights).glob("*.safetensors"))
        state = {key: value * 1.5 if value.is_floating_point() else value for key, value in load_file(path).items()}
        save_file(state, path, metadata={"format": "pt"})
    return folder
