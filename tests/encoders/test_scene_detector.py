import math

import pytest
import torch

from mmdit.encoders.scene_detector import SceneDetector, SceneDetectorObjective, enlarge, zoom_box
from mmdit.errors import UserError

LABELS = ["floor", "wall", "torus"]


@pytest.fixture
def detector() -> SceneDetector:
    torch.manual_seed(0)
    return SceneDetector(LABELS, 16, patch_size=2, channels=(8, 16), blocks=(1, 1))


def test_logits_of_every_pixel(detector):
    assert detector(torch.rand(2, 3, 16, 24) * 2 - 1).shape == (2, 3, 16, 24)
    assert detector.multiple == 4


def test_a_patch_is_written_where_it_was_read():
    torch.manual_seed(0)
    detector = SceneDetector(LABELS, 16, patch_size=4, channels=(8,), blocks=(0,)).eval()
    with torch.no_grad():
        detector.stem.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = (
            0  # each place sees itself only
        )
        detector.norm = torch.nn.Identity()
        plain = detector(torch.zeros(1, 3, 16, 16))
        images = torch.zeros(1, 3, 16, 16)
        images[..., 4:8, 8:12] = 1.0
        changed = (detector(images) != plain).any(dim=1)[0]
    assert changed[4:8, 8:12].all()
    changed[4:8, 8:12] = False
    assert not changed.any()


def test_round_trip_in_half_precision(detector, tmp_path):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    wanted = detector.eval()(images)
    detector.half().save_pretrained(tmp_path)
    loaded = SceneDetector.from_pretrained(tmp_path)
    assert loaded.labels == tuple(LABELS)
    assert loaded.head.weight.dtype == torch.float32
    torch.testing.assert_close(loaded(images), wanted, atol=0.02, rtol=0.02)
    assert not loaded.training


def test_refusals(detector, tmp_path):
    with pytest.raises(UserError, match=r"channels are \[8, 12\], blocks \[1, 1\]: give as many of both"):
        SceneDetector(LABELS, channels=(8, 12), blocks=(1, 1))
    with pytest.raises(UserError, match="no usable scene detector"):
        SceneDetector.from_pretrained(tmp_path / "nowhere")
    detector.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:200])
    with pytest.raises(UserError, match="no usable scene detector"):
        SceneDetector.from_pretrained(tmp_path)


def _batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    return images, torch.randint(3, (4, 16, 16), generator=generator), generator


def test_loss_of_a_detector_that_knows_nothing(detector):
    torch.nn.init.zeros_(detector.head.weight)
    torch.nn.init.zeros_(detector.head.bias)
    images, labels, generator = _batch()
    assert SceneDetectorObjective()(detector, images, labels=labels, generator=generator)[
        "loss"
    ].item() == pytest.approx(math.log(3), rel=1e-5)


def test_images_are_worsened_as_drawn_and_only_a_little(detector):
    objective = SceneDetectorObjective(jitter=0.0, noise=0.0)
    images, generator = torch.rand(32, 3, 16, 16) * 2 - 1, torch.Generator().manual_seed(0)
    worse = objective._worsened(images, generator)
    recoloured = worse.sort(dim=1).values  # channels have changed places, whatever the order
    same = (recoloured - images.sort(dim=1).values).flatten(1).abs().amax(dim=1) < 1e-6
    assert 8 < same.sum() < 24  # half of them are not blurred
    moved = (worse - images).flatten(1).abs().amax(dim=1) > 1e-6
    assert (same & moved).sum() > 4
    assert (same & ~moved).any()
    flat = torch.full((2, 3, 16, 16), 0.25)
    torch.testing.assert_close(objective._worsened(flat, generator), flat)


def test_steps_lower_the_loss(detector):
    objective, optimizer = SceneDetectorObjective(), torch.optim.Adam(detector.parameters(), 1e-2)
    history = []
    for _ in range(15):
        _, labels, generator = _batch()
        loss = objective(detector, labels.unsqueeze(1).expand(-1, 3, -1, -1) - 1.0, labels=labels, generator=generator)
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
        history.append(loss["loss"].item())
    assert history[-1] < 0.8 * history[0]


def test_a_zoom_box_holds_the_object_and_stays_inside():
    mask = torch.zeros(20, 40, dtype=torch.bool)
    mask[2:6, 10:18] = True  # shares: rows 0.1 to 0.3, columns 0.25 to 0.45
    top, left, side = zoom_box(mask, 2.0)
    assert side == pytest.approx(0.4)
    assert (top, left) == pytest.approx((0.0, 0.15))
    assert zoom_box(mask, 100.0) == (0.0, 0.0, 1.0)


def test_enlarging_cuts_out_and_keeps_the_whole():
    images = torch.arange(2 * 16 * 16, dtype=torch.float32).reshape(2, 1, 16, 16)
    boxes = torch.tensor([[0.25, 0.5, 0.5], [0.0, 0.0, 1.0]])
    nearest = enlarge(images, boxes, "nearest")
    assert torch.equal(nearest[0, 0, ::2, ::2], images[0, 0, 4:12, 8:16])
    assert torch.equal(nearest[0, 0, 1::2, 1::2], images[0, 0, 4:12, 8:16])
    assert torch.equal(nearest[1], images[1])
    torch.testing.assert_close(enlarge(images, boxes, "bilinear")[1], images[1])


def test_images_and_labels_are_enlarged_together():
    labels = torch.zeros(8, 32, 32, dtype=torch.int64)
    labels[:, 4:10, 20:26] = 2
    images = labels[:, None].expand(-1, 3, -1, -1) - 1.0
    objective = SceneDetectorObjective(zoom_share=1.0)
    large, its_labels = objective._enlarged(images, labels, torch.Generator().manual_seed(0))
    share = (its_labels == 2).float().mean(dim=(1, 2))
    assert ((share + 0.03 > 1 / 3.0**2) & (share < 1 / 1.3**2 + 0.03)).all()
    assert ((large[:, 0] > 0) == (its_labels == 2)).float().mean() > 0.93
    assert torch.equal(SceneDetectorObjective(zoom_share=0.0)._enlarged(images, labels, torch.Generator())[1], labels)
    nothing = torch.zeros_like(labels)
    assert torch.equal(objective._enlarged(images, nothing, torch.Generator().manual_seed(0))[1], nothing)
