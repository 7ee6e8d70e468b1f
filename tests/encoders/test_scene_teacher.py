import json
import math

import pytest
import torch

from mmdit.encoders.scene_teacher import SceneTeacher, SceneTeacherObjective
from mmdit.errors import UserError


@pytest.fixture
def teacher() -> SceneTeacher:
    torch.manual_seed(0)
    return SceneTeacher(num_categories=4, num_labels=6, image_size=16, hidden_size=12, depth=1, num_heads=2)


def test_shapes(teacher):
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    tokens = teacher.features(images)
    assert tokens.shape == (3, 4, 12)
    torch.testing.assert_close(teacher.pooled(images), tokens.mean(dim=1))
    assert teacher.classify(images).shape == (3, 4)
    labels, normals = teacher.dense(tokens)
    assert labels.shape == (3, 6, 16, 16)
    assert normals.shape == (3, 3, 16, 16)


def test_tokens_and_dense_maps_are_in_row_major_order(teacher):
    tokens = torch.zeros(1, 4, 12)
    tokens[0, 1] = 1.0  # top right
    for head in (teacher.label_head, teacher.normal_head):
        torch.nn.init.zeros_(head.bias)
    labels, _ = teacher.dense(tokens)
    assert labels[..., :8, 8:].abs().sum() > 0
    labels[..., :8, 8:] = 0
    assert labels.abs().sum() == 0


def test_round_trip(teacher, tmp_path):
    teacher.save_pretrained(tmp_path / "teacher")
    loaded = SceneTeacher.from_pretrained(tmp_path / "teacher")
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded.features(images), teacher.eval().features(images))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_incomplete_folders_are_named(teacher, tmp_path):
    folder = tmp_path / "teacher"
    with pytest.raises(UserError, match=r"teacher: no usable scene teacher"):
        SceneTeacher.from_pretrained(folder)
    teacher.save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(UserError, match="no usable scene teacher"):
        SceneTeacher.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))
    with pytest.raises(UserError, match="weights are not those of its config"):
        SceneTeacher.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "Other"}))
    with pytest.raises(UserError, match="_class_name"):
        SceneTeacher.from_pretrained(folder)


def _batch(batch_size: int = 4):
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(batch_size, 3, 16, 16, generator=generator), dim=1)
    return {
        "images": torch.rand(batch_size, 3, 16, 16, generator=generator) * 2 - 1,
        "categories": torch.arange(batch_size) % 4,
        "labels": torch.randint(6, (batch_size, 16, 16), generator=generator),
        "normals": normals,
        "generator": generator,
    }


def test_losses_of_a_teacher_that_knows_nothing(teacher):
    for head in (teacher.category_head, teacher.label_head, teacher.normal_head):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    parts = SceneTeacherObjective()(teacher, **_batch())
    assert parts["category"][0].item() == pytest.approx(math.log(4), rel=1e-5)
    assert parts["label"].item() == pytest.approx(math.log(6), rel=1e-5)
    assert parts["normal"].item() == pytest.approx(1.0, abs=1e-4)
    expected = 0.5 * math.log(4) + math.log(6) + 1.0
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_unknown_categories_and_missing_normals_cost_nothing(teacher):
    batch = _batch()
    batch["categories"] = torch.full((4,), -1)
    batch["normals"] = torch.zeros(4, 3, 16, 16)
    parts = SceneTeacherObjective()(teacher, **batch)
    assert parts["category"][1] == parts["category_accuracy"][1] == 0  # of no image
    assert parts["normal"] == 0
    assert parts["loss"].item() == pytest.approx(parts["label"].item())


def test_background_pixels_weigh_less():
    objective = SceneTeacherObjective(background_labels=(0,), background_weight=0.25)
    torch.manual_seed(0)
    teacher = SceneTeacher(2, 2, image_size=8, hidden_size=12, depth=1, num_heads=2)
    torch.nn.init.zeros_(teacher.normal_head.weight)
    with torch.no_grad():
        teacher.normal_head.bias.zero_()
        teacher.normal_head.bias[2 * 64 :] = 1.0  # every normal is (0, 0, 1)
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, 0] = 1  # 8 object pixels of weight 1, 56 of weight 1/4
    normals = torch.zeros(1, 3, 8, 8)
    normals[:, 2] = 1.0
    normals[:, :, 0] = torch.tensor([1.0, 0.0, 0.0])[:, None]  # wrong by 90 degrees on the object
    batch = {"categories": torch.zeros(1).long(), "labels": labels, "normals": normals, "generator": torch.Generator()}
    parts = objective(teacher, torch.zeros(1, 3, 8, 8), **batch)
    assert parts["normal"].item() == pytest.approx(8 / (8 + 56 / 4), rel=1e-4)


def test_a_step_lowers_the_loss(teacher):
    objective, optimizer = SceneTeacherObjective(jitter=0.0), torch.optim.Adam(teacher.parameters(), 1e-2)
    history = []
    for _ in range(15):
        loss = objective(teacher, **_batch())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]
