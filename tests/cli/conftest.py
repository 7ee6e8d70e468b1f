"""The command line in this process: arguments in, exit code and text out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error line; asserts that it is the only thing on stderr but for notes, and that nothing was traced."""
        lines = [line for line in self.err.splitlines() if not line.startswith("mmdit: note: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mmdit: error: ")
        return lines[0]


@pytest.fixture
def mmdit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run ``mmdit`` with arguments in an empty folder."""
    from mmdit.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMDIT_DEBUG", raising=False)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A PNG of 60 x 40 pixels (width x height)."""
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def prompted_pipeline_dir(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_pipeline_dir``, and it takes prompts: words of ``tiny_encoders.WORDS``, and subjects."""
    import torch
    from tiny_encoders import make_prompt_encoder

    from mmdit.models.transformer import MultimodalDiT
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    torch.manual_seed(0)
    transformer = MultimodalDiT(
        sample_size=16, hidden_size=16, depth=1, num_heads=2, num_classes=len(pipe.id2label), block="cross",
        conditioner="tiue", conditioner_settings={"text_width": 16, "image_width": 6},
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(std=0.2)
    components = {**pipe.components, "transformer": transformer, **make_prompt_encoder().components}
    folder = tmp_path_factory.mktemp("models") / "prompted"
    MultimodalDiTPipeline(**components, **pipe.parameters).save_pretrained(folder)
    return folder
