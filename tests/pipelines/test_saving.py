"""What a saved folder holds beside the components: a model card, and what lets diffusers itself load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from mmdit.errors import UserError
from mmdit.pipelines.card import CODE_TEXT, card_facts
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


@pytest.fixture
def folder(pipe: MultimodalDiTPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _latents(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe("cone", seed=0, num_inference_steps=2, output_type="latent").latents


def test_diffusers_loads_the_folder(
    pipe: MultimodalDiTPipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    loaded = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded) is MultimodalDiTPipeline
    assert torch.equal(_latents(loaded), _latents(pipe))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder)


def test_our_loader_runs_no_code_of_a_folder(pipe: MultimodalDiTPipeline, folder: Path, tmp_path: Path) -> None:
    assert (folder / "pipeline.py").read_text() == CODE_TEXT
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (folder / "pipeline.py").write_text(trap)
    loaded = MultimodalDiTPipeline.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(_latents(loaded), _latents(pipe))
    with pytest.raises(UserError, match="custom_pipeline is given: no code of a folder is run here"):
        MultimodalDiTPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    (folder / "None.py").write_text(trap)
    with pytest.raises(UserError, match="can't be loaded"):
        MultimodalDiTPipeline.from_pretrained(folder, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_folders_without_code_are_loaded_as_before(pipe: MultimodalDiTPipeline, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "MultimodalDiTPipeline"}))
    (folder / "pipeline.py").unlink()
    (folder / "README.md").unlink()
    assert torch.equal(_latents(MultimodalDiTPipeline.from_pretrained(folder)), _latents(pipe))


def test_model_card(pipe: MultimodalDiTPipeline, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\nlibrary_name: diffusers\ntags: [depth-estimation,")
    for words in ("`normal`: float32 (N, H, W, 3), unit vectors", "label ids of 3 classes", "5: sphere, box,",
                  'pipe("sphere", seed=0)', "25 steps, guidance 2", "width 32, depth 2", "Licence and provenance"):  # fmt: skip
        assert words in card
    (folder / "README.md").write_text("mine")
    pipe.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize("saw", [True, False, None])
def test_card_says_whether_photographs_were_seen(pipe: MultimodalDiTPipeline, tmp_path: Path, saw: bool | None) -> None:
    pipe.photographs = saw
    pipe.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert ("photographs:" in card.split("---")[1]) == (saw is not None)
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path / "model")
    assert loaded.photographs is saw
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card


@pytest.mark.parametrize(
    "text", ["", "---\n", "---\nphotographs: [\n---\n", "---\n- a\n---\n", "---\nphotographs: 1\n---\n", "\xff"]
)
def test_cards_of_any_kind_are_read(folder: Path, text: str) -> None:
    """A card is for people: whatever it holds, the model loads, and nothing is known of photographs."""
    (folder / "README.md").write_text(text, encoding="latin-1")
    assert card_facts(folder).get("photographs") in (None, 1)
    assert MultimodalDiTPipeline.from_pretrained(folder).photographs is None


def test_the_cards_example_runs(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    lines = [line for line in code.splitlines() if "image)" not in line]
    values: dict[str, Any] = {}
    exec("\n".join(lines).replace("seed=0", "seed=0, num_inference_steps=1"), values)
    assert values["out"].depth.shape == (1, 32, 32)


def test_defaults_are_saved(pipe: MultimodalDiTPipeline, folder: Path, tmp_path: Path) -> None:
    assert "defaults" not in json.loads((folder / "model_index.json").read_text())
    own = {"num_inference_steps": 7, "guidance_scale": 4.5}
    MultimodalDiTPipeline(**pipe.components, **pipe.parameters, defaults=own).save_pretrained(tmp_path / "own")
    loaded = MultimodalDiTPipeline.from_pretrained(tmp_path / "own")
    assert (loaded.defaults.num_inference_steps, loaded.defaults.guidance_scale) == (7, 4.5)
    assert MultimodalDiTPipeline(**loaded.components, **loaded.parameters).defaults == loaded.defaults


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"num_inference_steps": 0}, "defaults: num_inference_steps is 0: give a whole number from 1 to 10000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"guidance_scale": -1}, "defaults: guidance_scale is -1: give a number >= 0"),
        ({"prompt_guidance_scale": "3"}, "defaults: prompt_guidance_scale is '3': give a number >= 0"),
        ({"guidance_scale": "2"}, "guidance_scale is '2'"),
        ({"steps": 3}, "unknown name in defaults 'steps'"),
    ],
)
def test_bad_defaults(pipe: MultimodalDiTPipeline, folder: Path, defaults: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MultimodalDiTPipeline(**pipe.components, defaults=defaults)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"defaults": defaults}))
    with pytest.raises(UserError, match=f"model_index.json: .*{message}"):
        MultimodalDiTPipeline.from_pretrained(folder)


class _Hub:
    """The part of the Hub's client that an upload uses, with a repository in a folder."""

    has_card = False
    uploads: list[dict[str, Any]] = []  # noqa: RUF012 - emptied by the test

    def __init__(self, token: str | None = None) -> None:
        self.repo_id = ""

    def create_repo(self, repo_id: str, **_: Any) -> _Hub:
        self.repo_id = repo_id
        return self

    def file_exists(self, repo_id: str, name: str) -> bool:
        return self.has_card

    def upload_folder(self, **arguments: Any) -> str:
        files = sorted(path.name for path in Path(arguments["folder_path"]).iterdir())
        self.uploads.append({**arguments, "files": files})
        return "uploaded"


def test_push_to_hub(pipe: MultimodalDiTPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", _Hub)
    _Hub.uploads.clear()
    assert pipe.push_to_hub("me/model") == "uploaded"
    monkeypatch.setattr(_Hub, "has_card", True)
    pipe.save_pretrained(tmp_path / "mine", push_to_hub=True, commit_message="New")
    first, second = _Hub.uploads
    assert (first["repo_id"], first["ignore_patterns"]) == ("me/model", None)
    assert {"README.md", "pipeline.py", "model_index.json"} <= set(first["files"])
    assert (second["repo_id"], second["commit_message"]) == ("mine", "New")
    assert second["ignore_patterns"] == ["README.md"]  # the repository's card stays
