"""A prompt of another kind is one class and one entry in a table: trained, sampled from with guidance, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdit.conditioning import Conditioner, Conditioning
from mmdit.errors import UserError
from mmdit.models.conditioners import CONDITIONERS
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import (
    DataConfig,
    EMAConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    TrainerConfig,
    TrainingConfig,
)
from mmdit.training.recipes import build_run
from mmdit.training.run import fit

WORDS = ["red", "green", "torus", "cone", "small"]


class WordConditioner(Conditioner):
    """Words of a fixed vocabulary -> a token each, and their mean as the vector. Row 0 is padding, and no prompt at all."""

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.vocabulary, self.dropout_prob = list(vocabulary), dropout_prob
        self.embedding = nn.Embedding(len(vocabulary) + 1, hidden_size, padding_idx=0)

    def forward(self, ids: Tensor) -> Conditioning:
        mask, tokens = ids > 0, self.embedding(ids.to(self.embedding.weight.device))
        vector = tokens.sum(1) / mask.to(tokens).sum(1, keepdim=True).clamp(min=1)
        return Conditioning(vector, tokens, mask)

    def null(self, batch_size: int) -> Conditioning:
        return self(torch.zeros(batch_size, 1, dtype=torch.long))

    def without(self, ids: Tensor, rows: Tensor) -> Tensor:
        return torch.where(rows[:, None], 0, ids)

    def of_batch(self, batch: Mapping[str, Any]) -> Tensor:
        return torch.stack([batch["category"] % 2 + 1, batch["category"] // 2 + 3], dim=1)

    def of_inputs(self, class_labels: Sequence[int | None], prompts: Sequence[Any] | None) -> Tensor:
        texts = [""] * len(class_labels) if prompts is None else prompts
        for word in " ".join(texts).split():
            if word not in self.vocabulary:
                raise UserError(f"the prompt's word {word!r} is not known: give words of {', '.join(self.vocabulary)}")
        rows = [[self.vocabulary.index(word) + 1 for word in text.split()] for text in texts]
        length = max(1, *map(len, rows))
        return torch.tensor([row + [0] * (length - len(row)) for row in rows])

    def reset_parameters(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.embedding.weight[0])


def configuration(**model: Any) -> TrainingConfig:
    return TrainingConfig(
        model=ModelConfig(size="debug", **model),
        data=DataConfig(batch_size=4),
        objective=ObjectiveConfig(prediction="sample"),
        optimizer=OptimizerConfig(name="muon", lr=0.1, muon_lr=0.1),
        trainer=TrainerConfig(max_steps=4, validate_every=0, log_every=1, accelerator="cpu", devices=1),
        ema=EMAConfig(decay=0.0),
        preview=PreviewConfig(num_samples=0),
    )


def latents_of(pipe: MultimodalDiTPipeline, **arguments: Any) -> Tensor:
    defaults = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    return pipe(**(defaults | arguments)).latents


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a model of words that was trained until its embedding, behind three layers of zeros, has moved."""
    monkeypatch.setitem(CONDITIONERS, "words", WordConditioner)
    config = configuration(block="cross", conditioner="words", conditioner_settings={"vocabulary": WORDS})
    run = build_run(config)
    before = {name: weight.clone() for name, weight in run.module.network.state_dict().items()}
    folder = fit(run, config.trainer, config.ema, tmp_path / "run", None)
    assert folder is not None
    for name in ("conditioner.embedding.weight", "blocks.0.cross.proj.weight", "blocks.1.mlp.fc1.weight"):
        assert not torch.equal(run.module.network.state_dict()[name], before[name]), name
    return folder


def test_a_model_of_words(trained: Path) -> None:
    pipe = MultimodalDiTPipeline.from_pretrained(trained)
    assert pipe.transformer.config.conditioner == "words"
    assert isinstance(pipe.transformer.conditioner, WordConditioner)

    red = latents_of(pipe, prompt="red torus")
    assert (latents_of(pipe, prompt="green torus") - red).abs().max() > 1e-4
    assert (latents_of(pipe, prompt="red torus", guidance_scale=1.0) - red).abs().max() > 1e-4
    assert torch.equal(latents_of(pipe), latents_of(pipe, guidance_scale=1.0))  # no prompt, nothing to guide to

    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pair = latents_of(pipe, prompt=["small red torus", "red torus"], latents=noise.expand(2, -1, -1, -1, -1))
    torch.testing.assert_close(pair[1:], red, atol=1e-4, rtol=1e-4)  # neither padding nor batch mates matter
    assert len(latents_of(pipe, prompt="red cone", num_images=2)) == 2

    pipe.save_pretrained(trained.parent / "again")
    again = MultimodalDiTPipeline.from_pretrained(trained.parent / "again")
    assert torch.equal(latents_of(again, prompt="red torus"), red)


def test_bad_prompts(trained: Path) -> None:
    pipe = MultimodalDiTPipeline.from_pretrained(trained)
    with pytest.raises(UserError, match="the prompt's word 'blue' is not known: give words of red, green"):
        latents_of(pipe, prompt="blue torus")
    with pytest.raises(UserError, match="inputs differ in number: class_labels 2, prompt 3"):
        latents_of(pipe, class_labels=[0, 1], prompt=["red"] * 3)
    path = trained / "transformer" / "config.json"
    values = json.loads(path.read_text())
    for wrong in (3, {"vocabulary": {"red": 1}}):
        path.write_text(json.dumps({**values, "conditioner_settings": wrong}))
        with pytest.raises(
            UserError, match=r"conditioner_settings is .*: give keys with a text, a number, a list or null each"
        ):
            MultimodalDiTPipeline.from_pretrained(trained)


def test_a_class_model_takes_no_prompt(tmp_path: Path) -> None:
    config = configuration()
    folder = fit(build_run(config), config.trainer, config.ema, tmp_path / "run", None)
    assert folder is not None
    pipe = MultimodalDiTPipeline.from_pretrained(folder)
    with pytest.raises(UserError, match="this model takes no prompt: give class_labels"):
        latents_of(pipe, prompt="red torus")

    # its weights carry over into a model with cross-attention, which begins as the same, and into one of words
    network = build_run(configuration(block="cross", pretrained=str(folder))).module.network
    assert isinstance(network, MultimodalDiT)
    generator = torch.Generator().manual_seed(1)
    latents, t = torch.randn(2, 4, 4, 8, 8, generator=generator), torch.rand(2, 4, generator=generator)
    roles, label = torch.zeros(2, 4, dtype=torch.long), pipe.transformer.conditioner([1, None])
    expected = pipe.transformer(latents, t, roles, label).sample
    with_tokens = Conditioning(label.vector, torch.randn(2, 3, 32, generator=generator))
    assert torch.equal(network.eval()(latents, t, roles, network.conditioner([1, None])).sample, expected)
    assert torch.equal(network(latents, t, roles, with_tokens).sample, expected)
