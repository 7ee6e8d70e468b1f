"""Model folders with thousands of changed JSON files: loaded, or refused in one line before anything is imported or built."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from fuzzing import SEEDED, changed_json, damaged
from hypothesis import given
from hypothesis import strategies as st

from mmdit.errors import UserError
from mmdit.pipelines.loading import check_folder
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

FILES = ("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")


@pytest.fixture(scope="module")
def folder(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed") / "model"
    shutil.copytree(tiny_pipeline_dir, folder)
    return folder


@SEEDED
@given(data=st.data())
def test_changed_folders(folder: Path, tiny_pipeline_dir: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    whole = (tiny_pipeline_dir / name).read_bytes()
    changed = changed_json([json.loads(whole)]).map(lambda values: json.dumps(values).encode())
    (folder / name).write_bytes(data.draw(changed | changed | damaged([whole])))
    loaded = len(sys.modules)
    try:
        check_folder(folder, "MultimodalDiTPipeline")
        if data.draw(st.integers(0, 9)) == 0 or name == FILES[0]:
            MultimodalDiTPipeline.from_pretrained(folder)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
    finally:
        shutil.copy(tiny_pipeline_dir / name, folder / name)
    assert "payload" not in sys.modules
    assert len(sys.modules) - loaded < 400  # of diffusers itself, at the first
