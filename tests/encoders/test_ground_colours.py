import copy
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mmdit.encoders.ground_colours import MIN_PIXELS, GroundColourObjective, GroundReader, mean_colours
from mmdit.encoders.subjects import load_image_encoder


@pytest.fixture
def reader() -> GroundReader:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return GroundReader(
        CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=12, **sizes))
    )


def test_mean_colours_by_hand():
    rgb = torch.full((2, 3, 16, 16), -1.0)
    labels = torch.full((2, 16, 16), 7)
    labels[0, :8] = 3  # 128 pixels, half of them red, half white
    rgb[0, :, :4] = torch.tensor([1.0, -1, -1])[:, None, None]
    rgb[0, :, 4:8] = 1.0
    labels[1].view(-1)[: MIN_PIXELS - 1] = 3
    colours = mean_colours(rgb, labels, (3, 7))
    torch.testing.assert_close(colours[0], torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]]))
    assert colours[1, 0].isnan().all(), "one pixel too few"
    assert (colours[1, 1] == 0).all()


def test_loss_by_hand(reader):
    objective = GroundColourObjective(reader, colour_weight=2.0)
    before = copy.deepcopy(reader.tower).eval()
    with torch.no_grad():
        reader.tower.visual_projection.weight.mul_(1.1)
    rgb, crops = torch.rand(4, 3, 16, 16) * 2 - 1, torch.rand(3, 3, 16, 16) * 2 - 1
    colours = torch.rand(4, 2, 3)
    colours[1, 0] = torch.nan
    losses = objective(reader, rgb, colours, crops)
    old = before(pixel_values=torch.cat([rgb, crops])).image_embeds
    kept = (0.1 * old).square().mean() / old.var(dim=0).mean()
    torch.testing.assert_close(losses["kept"], kept)
    read = (1.1 * old[:4] @ reader.colours.weight.T + reader.colours.bias).view(4, 2, 3)
    colour = (read - colours)[~colours.isnan()].square().mean()
    torch.testing.assert_close(losses["colour"], colour)
    torch.testing.assert_close(losses["loss"], kept + 2 * colour)
    losses["loss"].backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in reader.parameters())


def test_pictures_without_grounds_or_crops_only_stay_as_they_are(reader):
    objective = GroundColourObjective(reader)
    losses = objective(reader.eval(), torch.rand(2, 3, 16, 16), torch.full((2, 2, 3), torch.nan), None)
    assert float(losses["colour"]) == float(losses["kept"]) == float(losses["loss"]) == 0


def test_colours_are_learned_and_crops_stay(reader, tmp_path: Path):
    """Floors and walls of one colour each: the embedding tells them after some steps, and of crops it says what it said."""
    objective = GroundColourObjective(reader, colour_weight=100.0)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)

    def pictures(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        colours = torch.rand(count, 2, 3, generator=draw)
        floor, wall = (colours[:, kind, :, None, None].expand(-1, -1, 8, 16) for kind in (0, 1))
        return torch.cat([wall, floor], dim=2) * 2 - 1, colours

    labels = torch.tensor([1, 0]).repeat_interleave(8)[None, :, None].expand(32, 16, 16)
    for _ in range(600):
        rgb, colours = pictures(32)
        torch.testing.assert_close(mean_colours(rgb, labels, (0, 1)), colours)
        crops = torch.rand(16, 3, 1, 1, generator=draw).expand(-1, -1, 16, 16) * 2 - 1
        losses = objective(reader, rgb, colours, crops)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert float(losses["colour"]) < 0.1 / 12, "a tenth of the colours' variance"
    assert float(losses["kept"]) < 1, "another picture's embedding is at 2"

    reader.save_tower(tmp_path)
    loaded = load_image_encoder(str(tmp_path))
    torch.testing.assert_close(loaded.encode(rgb), reader(rgb)[0].detach())
