"""UNIMO-G's way at tiny size: scenes with captions -> a captioner -> a transformer that reads interleaved prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmdit.encoders.multimodal import MultimodalEncoder
from mmdit.errors import UserError
from mmdit.flow.attention import attention_mask_loss, masks_on_grid
from mmdit.models.prompted import PromptInputs
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.prompt import parse
from mmdit.training.config import CaptionerConfig, DataConfig, ModelConfig, PromptsConfig, TrainingConfig
from mmdit.training.grounding import GROUND
from mmdit.training.recipes import build_run
from mmdit.training.run import fit

TINY = CaptionerConfig(
    patch_size=16, scale_factor=2, vision_hidden_size=16, vision_depth=1, vision_num_heads=2, hidden_size=16, depth=1, num_heads=2
)  # fmt: skip


def run_to_end(config: TrainingConfig, output: Path, resume: str | None = None) -> Path:
    folder = fit(build_run(config), config.trainer, config.ema, output, resume)
    assert folder is not None
    return folder


@pytest.fixture
def captioner_config(prompt_folders, tiny_config: Callable[..., TrainingConfig]) -> Callable[..., TrainingConfig]:
    def make(**changes) -> TrainingConfig:
        data = DataConfig(path=str(prompt_folders.data), batch_size=4, val_split=None)
        config = tiny_config(recipe="captioner", captioner=TINY, data=data, alignment=None, **changes)
        config.optimizer.schedule = "constant"
        return config

    return make


def test_a_captioner_trains_resumes_and_reads_prompts(captioner_config, tmp_path: Path) -> None:
    whole = run_to_end(captioner_config(max_steps=4), tmp_path / "whole")
    run_to_end(captioner_config(max_steps=2), tmp_path / "halves")
    again = run_to_end(captioner_config(max_steps=4), tmp_path / "halves", "auto")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, again))
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
    encoder = MultimodalEncoder.load(str(again))
    encoded = encoder([parse("a {gizmo} left of a cone", [torch_image()]), None])
    assert encoded.states.shape[2] == encoder.widths["text_width"] == 16
    assert (encoded.subjects == 0).sum() == 4


def torch_image():
    from PIL import Image

    return Image.new("RGB", (80, 70), (200, 30, 30))


def test_bad_captioners(captioner_config) -> None:
    config = captioner_config()
    config.captioner = CaptionerConfig(max_length=30)
    with pytest.raises(UserError, match=r"captioner.max_length is 30: the longest prompt has up to \d+ tokens"):
        build_run(config)
    config.data = DataConfig()
    with pytest.raises(UserError, match=r"data.path is null: recipe 'captioner' needs a dataset folder with captions"):
        build_run(config)


@pytest.fixture
def make_config(prompt_folders, tiny_config: Callable[..., TrainingConfig]):
    """A configuration of interleaved prompts; keyword arguments replace sections."""

    def make(block: str = "cross", **prompts) -> TrainingConfig:
        return tiny_config(
            model=ModelConfig(size="debug", block=block, conditioner="interleaved"),
            data=DataConfig(path=str(prompt_folders.latents), batch_size=4, val_split=None),
            prompts=PromptsConfig(
                str(prompt_folders.data), str(prompt_folders.captioner), pictures="either", **prompts
            ),
            alignment=None,
        )

    return make


@pytest.mark.parametrize("block", ["cross", "joint"])
def test_the_attention_loss_is_in_the_step(make_config, block: str) -> None:
    module = build_run(make_config(block, attention_loss_weight=0.5, max_subjects=2)).module
    with torch.no_grad():  # what begins at zero would stop gradients
        for weight in module.network.parameters():
            if not weight.any():
                weight.normal_(std=0.2)
    data = build_run(make_config(block, attention_loss_weight=0.5, max_subjects=2)).data
    loader = data.train_dataloader()
    batch, indices = next(iter(loader)), next(iter(loader.batch_sampler))
    raw = data.train.read_batch(*zip(*indices, strict=True))
    module.eval()
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    without = build_run(make_config(block, max_subjects=2)).module.eval()
    without.network.load_state_dict(module.network.state_dict())
    plain = without.losses(batch, torch.Generator().manual_seed(0))
    assert "attention" not in plain
    torch.testing.assert_close(losses["loss"], plain["loss"] + 0.5 * losses["attention"])
    assert losses["attention"] > 0

    seen = {}
    forward = module.network.forward

    def watch(*args, **kwargs):
        seen["attention"] = forward(*args, **kwargs).attention
        return forward(*args, **kwargs)

    module.network.forward = watch  # type: ignore[method-assign]
    module.losses(batch, torch.Generator().manual_seed(0))
    assert seen["attention"].shape[:3] == (2, 4, 64)
    prompts = module.frozen.encode_prompts(batch, torch.device("cpu"))["prompts"]
    ids = module.network.conditioner(PromptInputs(batch["category"], prompts)).subject_ids
    masks, known = masks_on_grid(raw["subject_masks"], (8, 8))
    assert len(masks) == int(ids.max()) + 1
    torch.testing.assert_close(attention_mask_loss(seen["attention"], ids, masks, known), losses["attention"])
    losses["loss"].backward()
    assert all(p.grad is None for p in module.frozen.prompts.parameters())


def test_the_attention_loss_may_be_about_words(make_config) -> None:
    """Of a batch of captions and pictures: tokens that pictures stand for are those of "subjects", and words are counted too."""
    named = {"attention_loss_weight": 0.5, "max_subjects": 2}
    config = make_config("cross", **named, attention_loss_on="words")
    module, batch = build_run(config).module.eval(), next(iter(build_run(config).data.train_dataloader()))
    losses = module.losses(batch, torch.Generator().manual_seed(0))
    assert losses["attention"] > 0
    of_words = batch[GROUND]["ids"]
    prompts = module.frozen.encode_prompts(batch, torch.device("cpu"))["prompts"]
    assert of_words.shape == prompts.mask.shape
    shown = prompts.subjects >= 0
    assert shown.any()
    assert (of_words[shown] >= 0).all()
    assert (of_words[~shown & prompts.mask] >= 0).any()
    assert int(of_words.max()) < len(batch[GROUND]["masks"])
    losses["loss"].backward()


def test_a_run_with_interleaved_prompts_trains_and_resumes(make_config, tmp_path: Path) -> None:
    config, halfway = (
        make_config(attention_loss_weight=0.1, plain_share=0.1, hidden_layer=-2, max_subjects=2) for _ in range(2)
    )
    config.trainer.max_steps, halfway.trainer.max_steps = 2, 1
    config.optimizer.schedule = halfway.optimizer.schedule = "constant"
    run = build_run(config)
    before = {name: p.detach().clone() for name, p in run.module.network.named_parameters()}
    folder = fit(run, config.trainer, config.ema, tmp_path / "run", None)
    assert folder is not None
    moved = {name for name, p in run.module.network.named_parameters() if not torch.equal(p, before[name])}
    assert {"blocks.0.cross.proj.weight", "conditioner.pooled_proj.weight"} <= moved
    run_to_end(halfway, tmp_path / "halves")
    again = run_to_end(config, tmp_path / "halves", "auto")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    one, other = load_file(folder / weights), load_file(again / weights)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    pipe = MultimodalDiTPipeline.from_pretrained(folder)
    encoder = pipe.prompt_encoder()
    assert isinstance(encoder, MultimodalEncoder)
    assert encoder.hidden_layer == -2, "the choice is saved with the model"
    out = pipe(prompt="a {torus} behind a cone", subjects=[torch_image()], num_inference_steps=1)
    assert len(out.rgb) == 1
    with pytest.raises(UserError, match="no prediction from the text alone to fuse with"):
        pipe(prompt="a {torus}", subjects=[torch_image()], fusing_scale=0.5, num_inference_steps=1)
    with pytest.raises(
        UserError, match="has 3 subjects, the model takes 2: leave some out"
    ):  # as many as it was trained with
        pipe(prompt="{} {} {}", subjects=[torch_image()] * 3, num_inference_steps=1)


def test_bad_attention_sections(make_config) -> None:
    for config, message in (
        (
            make_config("dit", attention_loss_weight=0.1),
            r"needs a model.block that attends to the prompt \(cross, joint\)",
        ),
        (
            make_config(attention_loss_weight=0.1, attention_blocks=[3]),
            r"attention_blocks is \[3\]: give numbers from 1 to",
        ),
        (make_config(hidden_layer=4), "hidden_layer is 4: the model has 1 layers, give -2 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            build_run(config)
