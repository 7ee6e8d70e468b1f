import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mmdit.encoders.features import load_teacher
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.errors import UserError

ARCHITECTURE = "test_vit"  # timm's own tiny ViT: 160 pixels, patch 16, width 64


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    """A timm model as the Hub stores it."""
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    folder = tmp_path_factory.mktemp("hub") / "vit"
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": ARCHITECTURE, "num_classes": 1000}))
    return folder


def test_a_timm_folder_gives_one_token_per_grid_cell(timm_folder):
    teacher = load_teacher(str(timm_folder), grid=(4, 6))
    assert teacher.name == ARCHITECTURE
    assert teacher.image_size == (64, 96)
    features = teacher.features(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert features.shape == (2, 24, 64)
    assert not features.requires_grad


def test_features_are_the_models_on_normalised_images(timm_folder):
    teacher = load_teacher(str(timm_folder), grid=(10, 10))
    model = timm.create_model(ARCHITECTURE, pretrained=False).eval()
    model.load_state_dict(load := _weights(timm_folder))
    images = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.forward_features((images - mean) / std)[:, model.num_prefix_tokens :]
    torch.testing.assert_close(teacher.features(images * 2 - 1), expected, atol=1e-4, rtol=1e-3)
    assert load


def _weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_resizing_is_antialiased_bicubic(timm_folder):
    teacher = load_teacher(str(timm_folder), grid=(2, 2))
    images = torch.rand(1, 3, 128, 128) * 2 - 1
    small = F.interpolate((images + 1) / 2, (32, 32), mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
    torch.testing.assert_close(teacher.features(images), teacher.features(small), atol=1e-4, rtol=1e-3)


def test_tokens_follow_the_image(timm_folder):
    teacher = load_teacher(str(timm_folder), grid=(2, 2))
    images = torch.zeros(1, 3, 32, 32)
    changed = images.clone()
    changed[..., :16, 16:] = torch.rand(3, 16, 16)
    difference = (teacher.features(changed) - teacher.features(images)).norm(dim=-1)[0]
    assert difference.argmax() == 1  # top right


def test_scene_teacher_folder(tmp_path):
    SceneTeacher(2, 3, image_size=16, hidden_size=8, depth=1, num_heads=2).save_pretrained(tmp_path)
    assert load_teacher(str(tmp_path), grid=(2, 2)).name == "scene_teacher"
    with pytest.raises(UserError, match=r"2 x 2 tokens, the transformer has 4 x 4"):
        load_teacher(str(tmp_path), grid=(4, 4))


def test_incomplete_and_damaged_folders_are_named(timm_folder, tmp_path):
    with pytest.raises(UserError, match=r"needs config\.json"):
        load_teacher(str(tmp_path), (2, 2))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable"):
        load_teacher(str(tmp_path), (2, 2))
    (tmp_path / "config.json").write_text('{"architecture": "vit_huge_patch99"}')
    with pytest.raises(UserError, match="vit_huge_patch99"):
        load_teacher(str(tmp_path), (2, 2))
    (tmp_path / "config.json").write_text((timm_folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"model\.safetensors: missing or damaged"):
        load_teacher(str(tmp_path), (2, 2))
    weights = _weights(timm_folder)
    weights.pop("blocks.0.attn.qkv.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 weights.*blocks\.0\.attn\.qkv\.weight"):
        load_teacher(str(tmp_path), (2, 2))


def test_unknown_name():
    with pytest.raises(UserError, match="'dinosaur' is neither a folder nor a timm model"):
        load_teacher("dinosaur", (2, 2))


def test_an_unreachable_hub_says_what_to_provide(monkeypatch):
    def offline(*args, **kwargs):
        if kwargs.get("pretrained"):
            raise OSError("Cannot reach the Hub")
        return create(*args, **kwargs)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError, match=r"'test_vit' can't be fetched.*Cannot reach.*config\.json and model\.safetensors"
    ):
        load_teacher(ARCHITECTURE, (2, 2))


def test_numbers_of_the_config_are_the_models(timm_folder, tmp_path):
    """A smaller depth, other statistics of the normalisation; and nothing that timm would read files for."""
    config = {"architecture": ARCHITECTURE, "model_args": {"depth": 2}, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(_weights(timm_folder), tmp_path / "model.safetensors")
    teacher = load_teacher(str(tmp_path), (2, 2))
    assert len(teacher.model.blocks) == 2
    torch.testing.assert_close(teacher.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    for name, value, wrong in (
        ("checkpoint_path", "a.pth", "checkpoint_path = 'a.pth': only sizes and settings"),
        ("depth", 0.5, "can't be loaded as test_vit"),
        ("no_such_size", 3, "can't be loaded as test_vit"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {name: value}}))
        with pytest.raises(UserError, match=wrong):
            load_teacher(str(tmp_path), (2, 2))
