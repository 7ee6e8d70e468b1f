"""Model folders with thousands of changed JSON files: loaded, or refused in one line before anything is imported or built."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from diffusers import AutoencoderKL
from fuzzing import EXAMPLES, SEEDED, changed_json, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.loading import check_folder, check_scheduler
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.component import check_component

FILES = ("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")


@pytest.fixture(scope="module")
def folder(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed") / "model"
    shutil.copytree(tiny_pipeline_dir, folder)
    return folder


@settings(SEEDED, max_examples=max(EXAMPLES // 2, 20))
@given(data=st.data())
def test_changed_folders(folder: Path, tiny_pipeline_dir: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    whole = (tiny_pipeline_dir / name).read_bytes()
    changed = changed_json([json.loads(whole)]).map(lambda values: json.dumps(values).encode())
    (folder / name).write_bytes(data.draw(changed | changed | damaged([whole])))
    loaded = len(sys.modules)
    try:
        whole_folder = data.draw(st.integers(0, 9)) == 0
        if whole_folder:
            MultimodalDiTPipeline.from_pretrained(folder)
        elif name.startswith("transformer"):
            check_component(folder / "transformer", MultimodalDiT)
        elif name.startswith("vae"):
            check_component(folder / "vae", AutoencoderKL)
        elif name.startswith("scheduler"):
            check_scheduler(folder / "scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler")
        else:
            check_folder(folder, "MultimodalDiTPipeline", passed={"transformer", "vae", "scheduler"})
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
    finally:
        shutil.copy(tiny_pipeline_dir / name, folder / name)
    assert "payload" not in sys.modules
    assert len(sys.modules) - loaded < 400  # of diffusers itself, at the first
