"""``import mmdit`` is lazy, and every public name resolves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mmdit

ROOT = Path(__file__).resolve().parents[1]


def test_import_is_cheap() -> None:
    """Nothing heavy, and 0.3 s of the processor's time, which a busy machine doesn't stretch."""
    code = """
import sys, time
start = time.process_time()
import mmdit
print(time.process_time() - start, *{name.split(".")[0] for name in sys.modules})
"""
    spent, *loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "torch",
        "diffusers",
        "transformers",
        "numpy",
        "PIL",
        "lightning",
        "timm",
        "triton",
        "safetensors",
        "einops",
    }
    assert not heavy & set(loaded)
    assert "mmdit" in loaded
    assert float(spent) < 0.3


def test_every_public_name_resolves_to_its_own() -> None:
    for name in mmdit.__all__:
        assert getattr(mmdit, name) is not None
    from mmdit.modalities import MODALITIES
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

    assert mmdit.MultimodalDiTPipeline is MultimodalDiTPipeline
    assert mmdit.MODALITIES is MODALITIES
    assert set(mmdit.__all__) <= set(dir(mmdit))
    assert isinstance(mmdit.__version__, str)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="MultimodalDit"):
        _ = mmdit.MultimodalDit
