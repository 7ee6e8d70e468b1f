import json

import huggingface_hub.constants
import pytest

from mmdit.errors import UserError
from mmdit.sources.labelling.source import find_source

KINDS = ("depth_anything", "MarigoldDepthPipeline")


def _model(folder, config=None, card=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "depth_anything"} | (config or {})))
    (folder / "model.safetensors").write_bytes(b"weights")
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def test_local_folder(tmp_path):
    folder = _model(tmp_path / "model", card="---\nlicense: apache-2.0\ntags: [depth]\n---\n# A model\nlicense: none\n")
    source = find_source(str(folder), "--depth", KINDS)
    assert (source.kind, source.licence, source.non_commercial) == ("depth_anything", "apache-2.0", False)
    assert source.revision.startswith("sha256:")
    assert find_source(str(folder), "--depth", KINDS).revision == source.revision
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert find_source(str(folder), "--depth", KINDS).revision != source.revision
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/model_index.json").write_text('{"_class_name": "MarigoldDepthPipeline"}')
    pipeline = find_source(str(tmp_path / "pipeline"), "--depth", KINDS)
    assert (pipeline.kind, pipeline.licence) == ("MarigoldDepthPipeline", "unknown")


@pytest.mark.parametrize(
    ("width", "licence", "non_commercial"),
    [(384, "apache-2.0", False), (768, "cc-by-nc-4.0", True), (1024, "cc-by-nc-4.0", True), (32, "unknown", False)],
)
def test_licence_of_depth_anything_without_a_card_is_known_by_its_size(tmp_path, width, licence, non_commercial):
    folder = _model(tmp_path / "model", {"backbone_config": {"hidden_size": width}})
    source = find_source(str(folder), "--depth", KINDS)
    assert (source.licence, source.non_commercial) == (licence, non_commercial)


def test_licence_with_a_name_of_its_own(tmp_path):
    folder = _model(tmp_path / "model", card="---\nlicense: other\nlicense_name: sam-licence\n---\n")
    assert find_source(str(folder), "--depth", KINDS).licence == "sam-licence"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The Hub can't be reached; its cache is an empty folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_cached_model_is_used_without_the_hub(hub_cache):
    commit = "0123456789abcdef0123456789abcdef01234567"
    _model(hub_cache / "models--someone--depth" / "snapshots" / commit, card="---\nlicense: mit\n---\n")
    (hub_cache / "models--someone--depth/refs").mkdir()
    (hub_cache / "models--someone--depth/refs/main").write_text(commit)
    source = find_source("someone/depth", "--depth", KINDS)
    assert (source.name, source.revision, source.licence) == ("someone/depth", commit, "mit")
    assert find_source(str(source.folder), "--depth", KINDS).revision == commit


def test_hub_out_of_reach_says_how_to_go_on(hub_cache):
    with pytest.raises(UserError, match=r"--depth 'someone/depth' can't be fetched") as caught:
        find_source("someone/depth", "--depth", KINDS)
    message = str(caught.value)
    assert "\n" not in message
    assert "hf download someone/depth --local-dir FOLDER" in message
    assert "config.json" in message


def test_wrong_models_are_named(tmp_path):
    with pytest.raises(UserError, match=r"'\./nowhere': no such folder, and no Hub id"):
        find_source("./nowhere", "--depth", KINDS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither model_index\.json nor config\.json"):
        find_source(str(tmp_path / "empty"), "--depth", KINDS)
    folder = _model(tmp_path / "other", {"model_type": "bert"})
    with pytest.raises(UserError, match=r"is a 'bert'.*known are MarigoldDepthPipeline, depth_anything"):
        find_source(str(folder), "--depth", KINDS)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds a JSON list, not an object"):
        find_source(str(folder), "--depth", KINDS)
