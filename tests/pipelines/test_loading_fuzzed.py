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
from mmdit.pipelines.loading import COMPONENTS, check_folder, check_scheduler, load_optional
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


ENCODERS = (
    *("text_encoder/config.json", "image_encoder/config.json", "tokenizer/tokenizer.json"),
    *("tokenizer/tokenizer_config.json", "image_processor/preprocessor_config.json", "model_index.json"),
)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Components of prompts in a folder with an index, and nothing else."""
    from tiny_encoders import make_prompt_encoder

    folder = tmp_path_factory.mktemp("encoders")
    index: dict[str, object] = {"_class_name": "MultimodalDiTPipeline"}
    for name, part in make_prompt_encoder("clip").components.items():
        part.save_pretrained(folder / name)
        index[name] = ["transformers", type(part).__name__]
    names = {"transformer": "MultimodalDiT", "vae": "AutoencoderKL", "scheduler": "FlowMatchEulerDiscreteScheduler"}
    index |= {name: [COMPONENTS[name][cls], cls] for name, cls in names.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@settings(SEEDED, max_examples=max(EXAMPLES // 2, 20))
@given(data=st.data())
def test_changed_encoders(encoders: Path, data: st.DataObject) -> None:
    """A component that is refused is refused in one line; one that is loaded has its weights."""
    name = data.draw(st.sampled_from(ENCODERS))
    whole = (encoders / name).read_bytes()
    changed = changed_json([json.loads(whole)]).map(lambda values: json.dumps(values).encode())
    try:
        (encoders / name).write_bytes(data.draw(changed | changed | damaged([whole])))
        check_folder(encoders, "MultimodalDiTPipeline", passed={"transformer", "vae", "scheduler"})
        others = {part.split("/")[0] for part in ENCODERS} - {name.split("/")[0]}
        load_optional(encoders, dict.fromkeys(others))
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
    finally:
        (encoders / name).write_bytes(whole)
    assert "payload" not in sys.modules
