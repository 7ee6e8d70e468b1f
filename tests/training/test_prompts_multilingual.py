"""Captions in other languages than English, through a multilingual text encoder: trained, saved, loaded, asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_multilingual import save_xlm_roberta, translate
from transformers import XLMRobertaModel

from mmdit.encoders.prompts import load_prompt_encoder
from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.prompt import parse
from mmdit.training.config import DataConfig, ModelConfig, PromptsConfig, TrainingConfig
from mmdit.training.recipes import build_run
from mmdit.training.run import fit

FRENCH, CHINESE = "une image de : {tore rouge}", "一个红色的{圆环}的图片"


@pytest.fixture(scope="module")
def folders(prompt_folders, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The scenes with captions in French and in Chinese, and an XLM-RoBERTa that knows these."""
    root = tmp_path_factory.mktemp("multilingual")
    data = shutil.copytree(prompt_folders.data, root / "data")
    file = data / "train" / "prompts.jsonl"
    lines = [translate(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    texts = [text for line in lines for text in line["captions"]]
    save_xlm_roberta(root / "xlm", [*texts, *(parse(each, [None]).text for each in (FRENCH, CHINESE))])
    return data, root / "xlm"


def subject() -> Image.Image:
    return Image.new("RGB", (64, 64), (200, 30, 30))


def test_a_multilingual_encoder_reads_words_of_any_script(folders, prompt_folders) -> None:
    encoder = load_prompt_encoder("tiue", str(folders[1]), str(prompt_folders.clip))
    assert isinstance(encoder.text.model, XLMRobertaModel)
    assert type(encoder.text.tokenizer).__name__.startswith("XLMRobertaTokenizer")
    prompts = [parse(text, [subject()]) for text in (FRENCH, CHINESE)]
    tokens = encoder.text.tokenize(prompts)
    for row, prompt in enumerate(prompts):
        pieces = encoder.text.tokenizer.convert_ids_to_tokens(tokens.ids[row][tokens.subjects[row] == row].tolist())
        covered = "".join(pieces).replace("▁", " ").strip()
        assert prompt.words[0] in covered, "all pieces of the marked words, and no piece beyond their neighbours"
        assert len(covered) <= len(prompt.words[0]) + 6
    together, alone = encoder(prompts), encoder(prompts[1:])
    length = int(tokens.mask[1].sum())
    torch.testing.assert_close(together.states[1, :length], alone.states[0, :length], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="the text encoder doesn't know"):
        encoder([parse("кольцо")])


def test_captions_in_other_languages_are_learned(
    folders, prompt_folders, tiny_config: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    data, xlm = folders
    prompts = PromptsConfig(str(data), str(xlm), str(prompt_folders.clip), pictures="crop", plain_share=0.2)
    config = tiny_config(
        max_steps=2,
        model=ModelConfig(size="debug", block="cross", conditioner="tiue"),
        data=DataConfig(path=str(prompt_folders.latents), batch_size=4, val_split=None),
        prompts=prompts,
        alignment=None,
    )
    run = build_run(config)
    with torch.no_grad():  # what begins at zero would stop the gradient of words in a run of two steps
        for weight in run.module.network.parameters():
            if not weight.any():
                weight.normal_(std=0.02)
    before = {name: weight.clone() for name, weight in run.module.network.named_parameters()}
    folder = fit(run, config.trainer, config.ema, tmp_path / "run", None)
    changed = {name for name, weight in run.module.network.named_parameters() if not torch.equal(weight, before[name])}
    assert any(name.startswith("conditioner.") for name in changed)
    pipe = MultimodalDiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    original = XLMRobertaModel.from_pretrained(xlm).state_dict()
    for name, weight in pipe.text_encoder.state_dict().items():
        assert torch.equal(weight, original[name]), "frozen"
    out = pipe(
        prompt=[FRENCH, CHINESE, "une image de : tore rouge"],
        subjects=[[subject()], [subject()], []],
        seed=0,
        num_inference_steps=1,
    )
    assert out.depth.shape == (3, 64, 64)
