import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mmdit.encoders.ground_colours import MIN_PIXELS, GroundColourObjective, GroundReader, mean_colours


@pytest.fixture
def reader() -> GroundReader:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=12, **sizes))
    made = GroundReader(tower, nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12)))
    made.measure(torch.rand(64, 3, 1, 1).expand(-1, -1, 16, 16) * 2 - 1)
    return made


def test_colours_are_parts_of_the_words_as_large_as_the_scale_says(reader):
    """Rows of the map are orthogonal, and one standard deviation along one of them is ``scale``."""
    torch.testing.assert_close(reader.colour_map @ reader.colour_map.T, 0.15**2 * torch.eye(6))
    pictures = torch.rand(5, 3, 16, 16) * 2 - 1
    words, told = reader(pictures)
    expected = ((words - reader.mean) / reader.std) @ reader.colour_map.T + 0.5
    torch.testing.assert_close(told, expected.view(5, 2, 3))
    reader.measure(pictures)
    torch.testing.assert_close(reader.mean, words.mean(0))
    torch.testing.assert_close(reader.std, words.std(0).mean())
    torch.testing.assert_close(reader(pictures)[1].mean(0), torch.full((2, 3), 0.5))


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
    with torch.no_grad():
        reader.pseudo_word[2].weight.mul_(1.1)
        reader.pseudo_word[2].bias.mul_(1.1)
    rgb, crops = torch.rand(4, 3, 16, 16) * 2 - 1, torch.rand(3, 3, 16, 16) * 2 - 1
    colours = torch.rand(4, 2, 3)
    colours[1, 0] = torch.nan
    losses = objective(reader, rgb, colours, crops)
    words, told = reader(torch.cat([rgb, crops]))
    kept = (words - words / 1.1).square().mean() / reader.std.square()
    torch.testing.assert_close(losses["kept"], kept)
    colour = (told[:4] - colours)[~colours.isnan()].square().mean()
    torch.testing.assert_close(losses["colour"], colour)
    torch.testing.assert_close(losses["loss"], kept + 2 * colour)
    losses["loss"].backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in reader.parameters())


def test_pictures_without_grounds_or_crops_only_stay_as_they_are(reader):
    objective = GroundColourObjective(reader)
    losses = objective(reader.eval(), torch.rand(2, 3, 16, 16), torch.full((2, 2, 3), torch.nan), None)
    assert float(losses["colour"]) == float(losses["kept"]) == float(losses["loss"]) == 0
    nothing = objective(reader, torch.zeros(0, 3, 16, 16), torch.zeros(0, 2, 3), None)
    assert float(nothing["loss"]) == 0
    nothing["loss"].backward()


def test_colours_are_learned_and_crops_stay(reader):
    """Floors and walls of one colour each: the words tell them after some steps, and of crops they say what they said."""
    reader.colour_map.mul_(4)  # these colours differ more than those of scenes do
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
    assert float(losses["kept"]) < 1, "another picture's word is at 2"
