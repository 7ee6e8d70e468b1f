"""Recipe "decoder": what is decoded, what is trained, and what stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit.errors import UserError
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.training.config import DataConfig, DecoderConfig, ModelConfig, OptimizerConfig, TrainingConfig
from mmdit.training.recipes import build_run
from mmdit.training.recipes.decoder import DecoderModule
from mmdit.training.run import Run, fit

Configure = Callable[..., TrainingConfig]
QUIET = {"latent_noise": 0.0}  # so that latents can be compared


@pytest.fixture
def configured(tiny_config: Configure, tiny_pipeline_dir: Path, prompt_folders: Any) -> Configure:
    """Of a tiny model and the scenes, four of them in a batch."""

    def build(**sections: Any) -> TrainingConfig:
        given = {
            "recipe": "decoder",
            "model": ModelConfig(pretrained=str(tiny_pipeline_dir)),
            "data": DataConfig(str(prompt_folders.data), batch_size=4, val_split=None),
            "decoder": DecoderConfig(settings=QUIET),
            "optimizer": OptimizerConfig(name="muon"),
            "ema": None,
        }
        return tiny_config(**{**given, **sections})

    return build


def first_batch(run: Run) -> tuple[dict[str, Any], torch.Tensor]:
    """A batch, and its images (B, M, 3, H, W)."""
    batch = next(iter(run.data.train_dataloader()))
    return batch, torch.stack([batch[name] for name in run.module.codec.modalities], dim=1)


def test_the_decoder_alone_is_trained(tmp_path: Path, configured: Configure, tiny_pipeline_dir: Path) -> None:
    config = configured(max_steps=3)
    run = build_run(config)
    folder = fit(run, config.trainer, config.ema, tmp_path / "run", None)
    assert folder is not None
    assert folder.name == "pipeline"
    before, after = (MultimodalDiTPipeline.from_pretrained(path) for path in (tiny_pipeline_dir, folder))
    changed = {
        f"{part}.{name.split('.')[0]}"
        for part in ("vae", "transformer")
        for name, value in getattr(before, part).state_dict().items()
        if not torch.equal(value, getattr(after, part).state_dict()[name])
    }
    assert changed == {"vae.decoder", "vae.post_quant_conv"}
    assert (before.modalities, before.defaults) == (after.modalities, after.defaults)


def test_its_loss_falls_on_what_the_model_predicts(configured: Configure) -> None:
    run = build_run(configured(decoder=DecoderConfig(1.0, QUIET), optimizer=OptimizerConfig(name="adamw", lr=3e-3)))
    batch, _ = first_batch(run)
    optimizer = torch.optim.AdamW(run.module.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = run.module.losses(batch, torch.Generator().manual_seed(0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_what_is_decoded(configured: Configure, tiny_pipeline_dir: Path) -> None:
    """Share 0: the images' own latents. Share 1: all but RGB as the pipeline predicts it, in its own one step."""
    own = build_run(configured(decoder=DecoderConfig(0.0, QUIET)))
    batch, images = first_batch(own)
    assert isinstance(own.module, DecoderModule)
    z = own.module.latents(images, batch["present"], torch.Generator().manual_seed(1))
    drawn = own.module.codec.sample(own.module.codec.encode_all(images), torch.Generator().manual_seed(1))
    torch.testing.assert_close(z, drawn)

    predicted = build_run(configured(decoder=DecoderConfig(1.0, QUIET))).module
    assert isinstance(predicted, DecoderModule)
    found = predicted.latents(images, batch["present"], torch.Generator().manual_seed(1))
    torch.testing.assert_close(found[:, 0], drawn[:, 0])
    generator = torch.Generator().manual_seed(1)
    torch.randn(z.shape, generator=generator)  # the posterior's, the noise's, its share's and the choice's
    torch.randn(z.shape, generator=generator)
    torch.rand(z.shape[0] * z.shape[1], generator=generator)
    torch.rand(len(z), generator=generator)
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    seed = int(torch.randint(2**31, (), generator=generator))
    rgb = list((images[:, 0] / 2 + 0.5).permute(0, 2, 3, 1).numpy())
    expected: Any = pipe(conditions={"rgb": rgb}, num_inference_steps=1, seed=seed, output_type="latent")
    torch.testing.assert_close(predicted.codec.whiten_all(found)[:, 1:], expected.latents[:, 1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[:, 1:], drawn[:, 1:], atol=0.1)


def test_what_is_missing_is_neither_decoded_nor_predicted_from(configured: Configure) -> None:
    run = build_run(configured(decoder=DecoderConfig(1.0, QUIET)))
    batch, images = first_batch(run)
    batch["present"][0, 0] = False  # no RGB
    batch["present"][1, 2] = False  # no normals
    z = run.module.latents(images, batch["present"], torch.Generator().manual_seed(1))
    drawn = run.module.codec.sample(run.module.codec.encode_all(images), torch.Generator().manual_seed(1))
    torch.testing.assert_close(z[0], drawn[0])
    loss = run.module.losses(batch, torch.Generator().manual_seed(1))["loss"]
    batch["rgb"][0], batch["normal"][1] = 0.3, 0.3
    # the other images are encoded in one batch, whose spread is not asked for without noise
    assert torch.equal(loss, run.module.losses(batch, torch.Generator().manual_seed(1))["loss"])


def test_data_that_the_model_reads_otherwise_are_refused(
    tmp_path: Path, configured: Configure, prompt_folders: Any
) -> None:
    root = Path(shutil.copytree(prompt_folders.data, tmp_path / "data"))
    described = json.loads((root / "dataset.json").read_text())
    data = DataConfig(str(root), batch_size=4, val_split=None)
    described["segmentation_classes"][0]["color"] = [1, 2, 3]
    (root / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(
        UserError, match=r"data\.path .*segmentation is encoded otherwise than model\.pretrained .*classes"
    ):
        build_run(configured(data=data))
    described["modalities"].remove("depth")
    (root / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"unknown modality of .*depth"):
        build_run(configured(data=data))
    for pretrained, message in (
        (None, "model.pretrained is null: give a pipeline"),
        ("nowhere", "give a pipeline folder"),
    ):
        with pytest.raises(UserError, match=message):
            build_run(configured(model=ModelConfig(pretrained=pretrained)))
    with pytest.raises(UserError, match="needs a dataset folder"):
        build_run(configured(data=DataConfig(None)))
    with pytest.raises(UserError, match=r"decoder\.predicted_share is 2"):
        build_run(configured(decoder=DecoderConfig(2.0)))
    with pytest.raises(UserError, match=r"decoder\.settings is .*'noise'.*does not take that"):
        build_run(configured(decoder=DecoderConfig(settings={"noise": 1.0})))
