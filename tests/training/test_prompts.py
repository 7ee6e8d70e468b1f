"""The whole way at tiny size: scenes with captions -> a CLIP model -> a transformer that reads prompts."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmdit.encoders.prompts import PromptEncoder
from mmdit.errors import UserError
from mmdit.pipelines.loading import bundled_models
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.prompt import parse
from mmdit.training.config import (
    CLIPConfig,
    DataConfig,
    LoRAConfig,
    ModelConfig,
    OptimizerConfig,
    PreviewConfig,
    PromptsConfig,
    TrainingConfig,
)
from mmdit.training.frozen import READ
from mmdit.training.grounding import GROUND
from mmdit.training.recipes import build_run
from mmdit.training.run import fit

TINY_CLIP = CLIPConfig(patch_size=16, hidden_size=16, depth=1, num_heads=2, projection_dim=16, max_length=40)


def run_to_end(config: TrainingConfig, output: Path, resume: str | None = None) -> Path:
    folder = fit(build_run(config), config.trainer, config.ema, output, resume)
    assert folder is not None
    return folder


@pytest.fixture
def dataset(prompt_folders) -> Path:
    return prompt_folders.data


@pytest.fixture
def clip(prompt_folders) -> Path:
    return prompt_folders.clip


@pytest.fixture
def make_config(prompt_folders, tiny_config: Callable[..., TrainingConfig]):
    """A configuration of prompts; keyword arguments replace sections."""

    def make(clip: Path, **sections) -> TrainingConfig:
        defaults = {
            "model": ModelConfig(size="debug", block="cross", conditioner="tiue"),
            "data": DataConfig(path=str(prompt_folders.latents), batch_size=4, val_split=None),
            "prompts": PromptsConfig(str(prompt_folders.data), str(clip), pictures="either", anonymous_share=0.3),
            "alignment": None,
        }
        return tiny_config(**{**defaults, **sections})

    return make


def test_clip_learns_and_reads_prompts(dataset: Path, tmp_path: Path, tiny_config) -> None:
    data = DataConfig(path=str(dataset), batch_size=16, val_split=None)
    config = tiny_config(max_steps=40, recipe="clip", clip=TINY_CLIP, data=data, alignment=None, ema=None)
    run = build_run(config)
    batch = next(iter(run.data.train_dataloader()))
    before = run.module.losses(batch, torch.Generator())
    folder = fit(run, config.trainer, config.ema, tmp_path / "run", None)
    after = run.module.losses(batch, torch.Generator())
    assert {"loss", "text", "subject", "accuracy"} == set(after)
    assert float(after["text"]) < float(before["text"]) - 0.3
    encoder = PromptEncoder.load(str(folder))
    prompts = [parse("a {torus} left of a object", [torch_image()]), parse("a pink cone")]
    encoded = encoder(prompts)
    assert encoded.states.shape[2] == encoder.widths["text_width"] == 16
    assert encoded.subject_embeddings.shape == (1, 16)
    with pytest.raises(UserError, match="doesn't know 'crimson'"):
        encoder([parse("a crimson torus")])


def torch_image():
    from PIL import Image

    return Image.new("RGB", (80, 70), (200, 30, 30))


def test_clip_needs_captions(dataset: Path, tiny_config) -> None:
    config = tiny_config(recipe="clip", clip=replace(TINY_CLIP, max_length=6), alignment=None)
    with pytest.raises(UserError, match=r"data.path is null: recipe 'clip' needs a dataset folder with captions"):
        build_run(config)
    with pytest.raises(UserError, match=r"clip.max_length is 6: the longest caption has \d+ tokens"):
        build_run(replace(config, data=DataConfig(path=str(dataset), val_split=None)))


def test_a_run_with_prompts_resumes_exactly(clip: Path, make_config, tmp_path: Path) -> None:
    """Six steps at once and three plus three end in the same weights; the exported folder reads prompts."""
    config = make_config(clip)
    halfway = make_config(clip)
    halfway.trainer.max_steps = 4
    halfway.optimizer.schedule = config.optimizer.schedule = "constant"
    whole = run_to_end(config, tmp_path / "constant")
    run_to_end(halfway, tmp_path / "halves")
    again = run_to_end(config, tmp_path / "halves", "auto")
    one, other = (MultimodalDiTPipeline.from_pretrained(folder) for folder in (whole, again))
    for name, weight in one.transformer.state_dict().items():
        assert torch.equal(weight, other.transformer.state_dict()[name]), name
    assert one.text_encoder is not None
    assert one.image_encoder is not None
    out = one(prompt="a {torus} behind a cone", subjects=[torch_image()], num_inference_steps=1)
    assert len(out.rgb) == 1


# Recipes that train a part of a pipeline on: what they learn, beginnings of the transformer's weights that change, and
# components that do.
PARTS = {
    "image_encoder": ("colour", ("conditioner.pseudo_word",), {"image_encoder"}),
    "styles": ("style", ("conditioner.token_norm", "conditioner.token_proj", "conditioner.refiner"), set()),
}
REFINED = ModelConfig(size="debug", block="cross", conditioner="tiue", conditioner_settings={"refiner_depth": 1})


def part_of(recipe: str, dataset: Path, pretrained: Path | str, tiny_config, max_steps: int = 4) -> TrainingConfig:
    data = DataConfig(path=str(dataset), batch_size=4, val_split=None)
    optimizer = OptimizerConfig(name="adamw", lr=1e-3)
    sections = {"recipe": recipe, "data": data, "optimizer": optimizer, "alignment": None, "ema": None}
    return tiny_config(max_steps=max_steps, model=ModelConfig(pretrained=str(pretrained)), **sections)


@pytest.mark.parametrize("recipe", PARTS)
def test_a_part_of_a_pipeline_is_trained_on(
    recipe: str, clip: Path, dataset: Path, make_config, tiny_config, tmp_path: Path
) -> None:
    """It alone changes; steps at once and after a stop are the same."""
    learned, beginnings, components = PARTS[recipe]
    before = run_to_end(make_config(clip, model=REFINED), tmp_path / "before")
    config = part_of(recipe, dataset, before, tiny_config)
    run = build_run(config)
    batch = next(iter(run.data.train_dataloader()))
    losses = {name: float(value.detach()) for name, value in run.module.losses(batch, torch.Generator()).items()}
    assert losses["kept"] == 0
    assert losses.keys() >= {"loss", learned}
    assert losses[learned] > 0
    whole = fit(run, config.trainer, None, tmp_path / "whole", None)

    half = part_of(recipe, dataset, before, tiny_config, max_steps=2)
    half.optimizer.schedule = "constant"
    fit(build_run(half), half.trainer, None, tmp_path / "halves", None)
    halves = fit(build_run(config), config.trainer, None, tmp_path / "halves", "auto")
    old, one, other = (MultimodalDiTPipeline.from_pretrained(folder) for folder in (before, whole, halves))
    for part in ("transformer", "image_encoder", "text_encoder", "vae"):
        weights = getattr(one, part).state_dict()
        changed = {
            name for name, weight in getattr(old, part).state_dict().items() if not torch.equal(weight, weights[name])
        }
        if part == "transformer":
            assert {name for name in weights if name.startswith(beginnings)} == changed
        else:
            assert bool(changed) == (part in components)
        for name, weight in getattr(other, part).state_dict().items():
            assert torch.equal(weight, weights[name]), name
    assert (
        len(one(prompt="a cone in the style of the {scene}", subjects=[torch_image()], num_inference_steps=1).rgb) == 1
    )


@pytest.mark.parametrize("recipe", PARTS)
def test_a_part_of_a_pipeline_says_what_is_missing(
    recipe: str, clip: Path, dataset: Path, make_config, tiny_config, tmp_path: Path, make_dataset
) -> None:
    pretrained = str(run_to_end(make_config(clip, model=REFINED), tmp_path / "run"))
    config = part_of(recipe, dataset, pretrained, tiny_config)
    data = config.data
    for changes, message in (
        ({"data": DataConfig(val_split=None)}, f"data.path is null: recipe '{recipe}' needs a dataset folder"),
        ({"model": ModelConfig()}, "model.pretrained is null: give a pipeline folder or a bundled model's name"),
        ({"model": ModelConfig(pretrained="nowhere")}, "model.pretrained nowhere: give a pipeline folder"),
        ({"model": ModelConfig(pretrained="scenes64_class")}, "scenes64_class makes no words of pictures"),
        ({"data": replace(data, path=str(make_dataset()))}, "has no caption of 5 samples"),
    ):
        with pytest.raises(UserError, match=message):
            build_run(replace(config, **changes))
    for edit, message in (
        (lambda info: info["modalities"].remove("segmentation"), "unknown modality .*'segmentation'"),
        (lambda info: info["segmentation_classes"][0].update(name="sky"), "has no segmentation class 'floor'"),
    ):
        copied = tmp_path / "copied"
        shutil.copytree(dataset, copied)
        info = json.loads((copied / "dataset.json").read_text())
        edit(info)
        (copied / "dataset.json").write_text(json.dumps(info))
        with pytest.raises(UserError, match=message):
            build_run(replace(config, data=replace(data, path=str(copied))))
        shutil.rmtree(copied)


def test_styles_need_a_model_that_can_be_told_them(
    clip: Path, dataset: Path, make_config, tiny_config, tmp_path: Path, monkeypatch
) -> None:
    """Two pictures in a prompt, a refiner, words that it knows; and captions that it can read."""
    one_subject = PromptsConfig(str(dataset), text_encoder=str(clip), max_subjects=1)
    narrow = run_to_end(make_config(clip, prompts=one_subject, model=REFINED), tmp_path / "narrow")
    with pytest.raises(UserError, match="takes 1 picture in a prompt: a style is told by 2"):
        build_run(part_of("styles", dataset, narrow, tiny_config))

    unrefined = run_to_end(make_config(clip), tmp_path / "unrefined")
    with pytest.raises(
        UserError, match=r"has no refiner, .* give a model of conditioner_settings\.refiner_depth 1 or more"
    ):
        build_run(part_of("styles", dataset, unrefined, tiny_config))

    pretrained = run_to_end(make_config(clip, model=REFINED), tmp_path / "run")
    for words, message in (
        (["style"], "recipe 'styles': .*style"),
        (["floor", "wall", "on", "against"], "recipe 'styles': .*(floor|on)"),
    ):
        folder = tmp_path / "unknown"
        shutil.copytree(pretrained, folder)
        tokenizer = folder / "tokenizer/tokenizer.json"
        known = json.loads(tokenizer.read_text())
        for word in words:
            known["model"]["vocab"][f"un{word}"] = known["model"]["vocab"].pop(word)
        tokenizer.write_text(json.dumps(known))
        with pytest.raises(UserError, match=message):
            build_run(part_of("styles", dataset, folder, tiny_config))
        shutil.rmtree(folder)

    with monkeypatch.context() as patch:
        patch.setattr("mmdit.training.recipes.styles.TOLD", "on a {floor} and against a {wall}")
        with pytest.raises(
            UserError, match=r"'in the style of the scene' as 8 tokens and .* as 9: recipe 'styles' needs"
        ):
            build_run(part_of("styles", dataset, pretrained, tiny_config))

    folder = tmp_path / "captions"
    shutil.copytree(dataset, folder)
    lines = (folder / "train/prompts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0] |= {"captions": ["a xylophone"], "entities": []}
    (folder / "train/prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    config = part_of("styles", folder, pretrained, tiny_config, max_steps=16)
    with pytest.raises(UserError, match=r"prompts\.jsonl, sample '000000': .*xylophone"):
        build_run(config)

    encoder = MultimodalDiTPipeline.from_pretrained(pretrained).prompt_encoder()
    assert isinstance(encoder, PromptEncoder)
    longest = encoder.text.max_length
    rows[0]["captions"] = [" ".join(["grey"] * (longest - 2))]
    (folder / "train/prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(
        UserError, match=rf"sample '000000': .* has {longest + 6} tokens, .*'in the style of the scene'"
    ):
        build_run(config)


def test_gradients_reach_the_pseudo_word_alone_where_asked(clip: Path, make_config) -> None:
    model = ModelConfig(size="debug", block="cross", conditioner="tiue", trainable=["conditioner.pseudo_word"])
    run = build_run(make_config(clip, model=model))
    with torch.no_grad():  # what begins at zero would stop the gradient of a model that never met a prompt
        for weight in run.module.network.parameters():
            if not weight.any():
                weight.normal_(std=0.02)
    names = {name for name, p in run.module.network.named_parameters() if p.requires_grad}
    assert names == {f"conditioner.pseudo_word.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    batch = next(iter(run.data.train_dataloader()))
    run.module.losses(batch, torch.Generator().manual_seed(0))["loss"].backward()
    grads = {name for name, p in run.module.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert grads == names
    text = run.module.frozen.prompts.text
    assert all(p.grad is None for p in text.parameters())
    with pytest.raises(UserError, match=r"unknown beginning in model.trainable 'conditioner.pseudoword'.*pseudo_word"):
        build_run(make_config(clip, model=replace(model, trainable=["conditioner.pseudoword"])))


def test_the_encoders_of_a_model_by_its_name_or_folder(make_config, dataset: Path, clip: Path) -> None:
    """The bundled model's, with the layer that it was saved with, for a network of random weights."""
    folder = bundled_models()["scenes64"]
    for name in ("scenes64", str(folder)):
        prompts = PromptsConfig(str(dataset), name, max_subjects=2)
        encoder = build_run(make_config(clip, prompts=prompts)).module.frozen.prompts
        own = MultimodalDiTPipeline.from_pretrained(folder).prompt_encoder()
        asked = [parse("a red torus left of a blue cone")]
        torch.testing.assert_close(encoder(asked).states, own(asked).states)


def test_bad_sections(clip: Path, make_config, dataset: Path) -> None:
    model = make_config(clip).model
    for changed, message in (
        ({"prompts": PromptsConfig(str(dataset))}, "prompts.text_encoder is null, and there is no model.pretrained"),
        (
            {
                "prompts": PromptsConfig(str(dataset), image_encoder=str(clip)),
                "model": replace(model, pretrained="scenes64"),
            },
            "prompts.image_encoder is .* and is given without an encoder .* --prompts.image_encoder null too",
        ),
        (
            {"prompts": PromptsConfig(str(dataset), "scenes64", hidden_layer=1)},
            "prompts.hidden_layer is 1, and is given without an encoder .* --prompts.hidden_layer null too",
        ),
        (
            {"prompts": PromptsConfig(str(dataset), "scenes64_class")},
            "prompts.text_encoder is a model's, and scenes64_class reads no prompts",
        ),
        (
            {"prompts": PromptsConfig(str(dataset), "scenes64"), "model": replace(model, conditioner="interleaved")},
            "prompts.text_encoder is a model's, and scenes64 has the encoders of model.conditioner 'tiue'",
        ),
        (
            {
                "prompts": PromptsConfig(str(dataset), hidden_layer=1),
                "model": replace(model, pretrained="scenes64"),
            },
            "prompts.hidden_layer is 1, and is given without an encoder .* --prompts.hidden_layer null too",
        ),
        (
            {"prompts": PromptsConfig(str(dataset)), "model": replace(model, pretrained="scenes64_class")},
            "model.pretrained scenes64_class reads no prompts",
        ),
        (
            {
                "prompts": PromptsConfig(str(dataset)),
                "model": replace(model, conditioner="interleaved", pretrained="scenes64"),
            },
            "has the encoders of model.conditioner 'tiue', not 'interleaved'",
        ),
        ({"prompts": PromptsConfig(None, str(clip))}, "prompts.path is null"),
        ({"prompts": PromptsConfig(str(dataset), str(clip), pictures="all")}, "unknown prompts.pictures 'all'"),
        ({"model": ModelConfig(size="debug")}, "unknown conditioner with prompts 'class'"),
        ({"data": DataConfig()}, "prompts need latents on disk"),
        ({"prompts": PromptsConfig(str(dataset), str(dataset / "none"))}, "none"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build_run(make_config(clip, **changed))
        assert "\n" not in str(caught.value)


def test_previews_show_prompts(clip: Path, make_config, prompt_folders) -> None:
    settings = PromptsConfig(str(prompt_folders.data), str(clip), pictures="either", label_share=0.0)
    data = DataConfig(path=str(prompt_folders.latents), batch_size=4, val_split="train")
    preview = PreviewConfig(num_samples=3, num_measured=0, num_inference_steps=1)
    config = make_config(clip, prompts=settings, data=data, preview=preview)
    config.trainer.validate_every = 1
    run = build_run(config)
    for weight in run.module.network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    (previews,) = run.callbacks
    asked = previews._asked()
    assert all(asked["prompt"])
    assert asked["class_labels"] == [None] * 3
    assert any(asked["subjects"])
    shown = previews._grids()["generated"]
    previews.prompts = None
    assert not torch.equal(previews._grids()["generated"], shown)


def test_a_caption_that_cannot_be_read_names_its_sample(clip: Path, make_config) -> None:
    frozen = build_run(make_config(clip)).module.frozen
    batch = {"id": ["a", "b"], "caption": ["a grey floor", "a crimson floor"], "subjects": [[], []]}
    with pytest.raises(
        UserError, match=r"prompts.jsonl, sample 'b': prompt 'a crimson floor': .* doesn't know 'crimson'"
    ):
        frozen.encode_prompts(batch, torch.device("cpu"))


def test_captions_are_read_before_the_first_step(clip: Path, make_config, prompt_folders, tmp_path: Path) -> None:
    """One that is too long, or has a word that the encoder doesn't know, would else end a run when it is met."""
    root = shutil.copytree(prompt_folders.data, tmp_path / "data")
    file = root / "train" / "prompts.jsonl"
    lines = list(map(json.loads, file.read_text().splitlines()))
    for row, caption, message in (
        (7, "a red floor and " * 12 + "a grey wall", r"has \d+ tokens, the text encoder reads 40"),
        (9, "a crimson floor", "doesn't know 'crimson'"),
    ):
        changed = {**lines[row], "captions": [*lines[row]["captions"], caption], "entities": []}
        file.write_text("\n".join(json.dumps(changed if i == row else line) for i, line in enumerate(lines)))
        with pytest.raises(UserError, match=rf"prompts.jsonl, sample '{changed['id']}': .*{message}"):
            build_run(make_config(clip, prompts=PromptsConfig(str(root), str(clip))))


def test_whitening_of_the_model_it_starts_from(clip: Path, make_config, prompt_folders, tmp_path: Path) -> None:
    first = run_to_end(make_config(clip), tmp_path / "first")
    pipe = MultimodalDiTPipeline.from_pretrained(first)
    moved = pipe.modalities["depth"].replace(latents_mean=(1.0,) * 4, latents_std=(2.0,) * 4)
    changed = {**pipe.modalities, "depth": moved}
    MultimodalDiTPipeline(**pipe.components, modalities=changed, id2label=pipe.id2label).save_pretrained(
        tmp_path / "moved"
    )
    model = ModelConfig(size="debug", block="cross", conditioner="tiue", pretrained=str(tmp_path / "moved"))
    data = DataConfig(path=str(prompt_folders.latents), batch_size=4, val_split=None, whitening="pretrained")
    module = build_run(make_config(clip, model=model, data=data)).module
    assert module.codec.modalities["depth"].latents_std == (2.0,) * 4
    assert module.codec.modalities["rgb"] == pipe.modalities["rgb"]
    otherwise = {**pipe.modalities, "depth": pipe.modalities["depth"].replace(space="depth", quantiles=(0.0, 1.0))}
    MultimodalDiTPipeline(**pipe.components, modalities=otherwise, id2label=pipe.id2label).save_pretrained(
        tmp_path / "linear"
    )
    linear = replace(model, pretrained=str(tmp_path / "linear"))
    with pytest.raises(
        UserError,
        match=r"data\.path .*latents: depth is encoded otherwise than model\.pretrained .*linear has it \(.*encode it as",
    ):
        build_run(make_config(clip, model=linear, data=data))
    with pytest.raises(UserError, match=r"data.whitening 'pretrained' is that of model.pretrained, which is null"):
        build_run(make_config(clip, data=data))


def test_clip_goes_on_with_its_text_tower_frozen(dataset: Path, clip: Path, tmp_path: Path, tiny_config) -> None:
    data = DataConfig(path=str(dataset), batch_size=8, val_split=None)
    settings = replace(TINY_CLIP, pretrained=str(clip), freeze_text=True)
    folder = run_to_end(tiny_config(recipe="clip", clip=settings, data=data, alignment=None), tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (clip, folder))
    assert before.keys() == after.keys()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"vision_model", "visual_projection", "logit_scale"}
    settings = replace(settings, freeze_text_layers=1, name_weight=0.5, pair_share=1.0)
    folder = run_to_end(tiny_config(recipe="clip", clip=settings, data=data, alignment=None), tmp_path / "in_part")
    after = load_file(folder / "model.safetensors")
    kept = {name for name in before if name.startswith("text_model") and torch.equal(before[name], after[name])}
    assert {name.split(".")[3] for name in kept if ".layers." in name} == {"0"}
    assert {name for name in kept if ".layers." not in name} == {
        name for name in before if ".embeddings." in name and "text" in name
    }
    vocabularies = [json.loads((path / "tokenizer.json").read_text())["model"]["vocab"] for path in (clip, folder)]
    assert vocabularies[0] == vocabularies[1]
    with pytest.raises(UserError, match=r"clip.freeze_text_layers is 1, and clip.freeze_text is false"):
        build_run(tiny_config(recipe="clip", clip=replace(settings, freeze_text=False), data=data, alignment=None))
    with pytest.raises(UserError, match=r"reads 64 pixels, clip.image_size is 32"):
        build_run(tiny_config(recipe="clip", clip=replace(settings, image_size=32), data=data, alignment=None))


def test_the_attention_loss_of_words(clip: Path, make_config, prompt_folders) -> None:
    """Of all tokens that name something whose mask is known, told token by token."""
    words = {"attention_loss_weight": 0.5, "attention_loss_on": "words"}
    prompts = PromptsConfig(str(prompt_folders.data), str(clip), **words, anonymous_share=0.5, max_subjects=1)
    run = build_run(make_config(clip, prompts=prompts))
    loader = run.data.train_dataloader()
    module, batch = run.module, next(iter(loader))
    raw = run.data.train.read_batch(*zip(*next(iter(loader.batch_sampler)), strict=True))
    encoded = module.frozen.encode_prompts(batch, torch.device("cpu"))
    conditioning = module.network.conditioner(module.network.conditioner.of_batch(encoded))
    ids, masks = module.attention.token_ids(batch, conditioning), batch[GROUND]["masks"]
    assert len(masks) == len({int(i) for i in ids.flatten() if i >= 0}) > sum(map(len, raw["subject_masks"]))
    tokenizer, first = module.frozen.prompts.text.tokenizer, 0
    for row, (template, spans) in enumerate(zip(raw["caption"], raw["mentions"], strict=True)):
        text = template.replace("{", "").replace("}", "")
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        for number, (start, end) in enumerate(spans):
            words = [t for t, i in zip(tokens, ids[row].tolist(), strict=False) if i == first + number]
            assert words == text[start:end].split()
        first += len(spans)
    losses = [module.losses(each, torch.Generator().manual_seed(0))["attention"] for each in (batch, raw)]
    assert losses[0] == losses[1] > 0  # made ready by the process that loads, and in the one that trains
    with pytest.raises(UserError, match=r"unknown prompts\.attention_loss_on 'word'"):
        build_run(make_config(clip, prompts=replace(prompts, attention_loss_on="word")))
    chosen = build_run(make_config(clip, prompts=replace(prompts, attention_loss="choice"))).module
    assert chosen.losses(batch, torch.Generator().manual_seed(0))["attention"] > 0
    with pytest.raises(UserError, match=r"unknown prompts\.attention_loss 'choose'"):
        build_run(make_config(clip, prompts=replace(prompts, attention_loss="choose")))


def test_a_lora_of_a_model_of_prompts(clip: Path, make_config, tmp_path: Path) -> None:
    """Its weights reach the attention to the prompt, which the model's own encoders read."""
    base = run_to_end(make_config(clip, max_steps=1, checkpoint_every=1), tmp_path / "base")
    config = make_config(clip, max_steps=2, lora=LoRAConfig(2), model=ModelConfig(pretrained=str(base)))
    assert config.prompts is not None
    config = replace(config, prompts=replace(config.prompts, text_encoder=None))
    folder = run_to_end(config, tmp_path / "run")
    weights = MultimodalDiTPipeline.lora_state_dict(folder)
    assert weights["transformer.blocks.0.cross.kv.lora_B.weight"].abs().max() > 0
    pipe = MultimodalDiTPipeline.from_pretrained(base)
    pipe.load_lora_weights(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(prompt="grey", seed=0, num_inference_steps=1).depth.shape == (1, 64, 64)


def test_prompts_are_read_by_the_processes_that_load_data(clip: Path, make_config) -> None:
    """What a loader process read is encoded as captions and pictures are in the training process."""
    config = make_config(clip)
    run = build_run(replace(config, data=replace(config.data, num_workers=1)))
    loader, encode = run.data.train_dataloader(), run.module.frozen.encode_prompts
    batch = next(iter(loader))
    assert READ in batch
    assert "subjects" not in batch  # pictures: they would be sent from process to process
    raw = run.data.train.read_batch(*zip(*next(iter(loader.batch_sampler)), strict=True))
    assert raw["id"] == batch["id"]
    assert any(raw["subjects"])
    networks = sum(p.numel() for p in run.module.frozen.prompts.parameters())
    assert (
        len(pickle.dumps(run.data.loader_settings["prepare"])) < networks
    )  # it holds no weights, which have four bytes each
    read, own = (encode(each, torch.device("cpu"))["prompts"] for each in (batch, raw))
    for name in ("states", "mask", "subjects", "subject_embeddings", "present"):
        assert torch.equal(getattr(read, name), getattr(own, name))


def test_several_draws_of_a_sample(clip: Path, make_config) -> None:
    """The step is that of a batch with each sample so often, but its prompts are encoded once."""
    config = make_config(clip)
    config.objective.draws_per_sample = 3
    run = build_run(config)
    module, batches = run.module.train(), run.data.train_dataloader()
    raw = run.data.train.read_batch(*zip(*next(iter(batches.batch_sampler)), strict=True))
    assert any(raw["subjects"])
    asked: list[int] = []
    module.frozen.prompts.text.model.register_forward_hook(lambda *_: asked.append(1))
    step = module.losses(raw, torch.Generator().manual_seed(0))
    assert len(asked) <= 2  # the words, and the words with pictures among them
    step["loss"].backward()
    gradients = [p.grad.clone() for p in module.network.parameters() if p.grad is not None]

    written = {
        key: value.repeat_interleave(3, 0) if isinstance(value, torch.Tensor) else [v for v in value for _ in range(3)]
        for key, value in raw.items()
    }
    module.draws_per_sample = 1
    module.zero_grad()
    same = module.losses(written, torch.Generator().manual_seed(0))
    same["loss"].backward()
    torch.testing.assert_close(step["loss"], same["loss"])
    for ours, theirs in zip(
        gradients, [p.grad for p in module.network.parameters() if p.grad is not None], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert module.losses(raw, torch.Generator().manual_seed(0))["loss"] != step["loss"]

    module.draws_per_sample = 3
    validated = module.eval().losses(raw, torch.Generator().manual_seed(0))["loss"]
    module.draws_per_sample = 1
    assert validated == module.losses(raw, torch.Generator().manual_seed(0))["loss"]


def test_several_draws_and_the_attention_loss(clip: Path, make_config, prompt_folders) -> None:
    prompts = PromptsConfig(str(prompt_folders.data), str(clip), attention_loss_weight=0.5)
    config = make_config(clip, prompts=prompts)
    config.objective.draws_per_sample = 2
    with pytest.raises(UserError, match=r"draws_per_sample is 2.*attention_loss_weight: 0"):
        build_run(config)
