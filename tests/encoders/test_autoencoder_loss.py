import math

import pytest
import torch
from diffusers import AutoencoderKL

from mmdit.encoders.autoencoder_loss import AutoencoderObjective
from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codec, get_modalities

RGB, NORMAL, SEGMENTATION = (list(MODALITIES).index(name) for name in ("rgb", "normal", "segmentation"))


def _losses(objective, output, images, row, mean=None, logvar=None):
    zeros = torch.zeros(len(images), 4, 2, 2)
    ids = torch.full((len(images),), row)
    return objective.losses(output, images, ids, zeros if mean is None else mean, zeros if logvar is None else logvar)


def test_perfect_reconstruction_costs_nothing_but_the_labels_softness():
    images = torch.randn(2, 3, 8, 8).clamp(-1, 1)
    for row in (RGB, NORMAL):
        assert _losses(AutoencoderObjective(MODALITIES), images, images, row)["loss"].item() == pytest.approx(
            0, abs=1e-6
        )


def test_l1_and_edges_are_mean_absolute_differences():
    objective = AutoencoderObjective(MODALITIES, weights={"rgb": 3.0}, edge_weight=0.5)
    images, output = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    output[..., 0] = 0.4  # a vertical edge: horizontal differences are 0.4, vertical ones 0
    parts = _losses(objective, output, images, RGB)
    assert parts["l1"].item() == pytest.approx(0.2)
    assert parts["edge"].item() == pytest.approx(0.4)
    assert parts["loss"].item() == pytest.approx(3 * (0.2 + 0.5 * 0.4))


def test_kl_is_that_of_a_gaussian_to_the_standard_one():
    mean, logvar = torch.full((1, 4, 2, 2), 0.7), torch.full((1, 4, 2, 2), math.log(0.3))
    images = torch.zeros(1, 3, 2, 2)
    parts = _losses(AutoencoderObjective(MODALITIES, kl_weight=2.0), images, images, RGB, mean, logvar)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.7, 0.3**0.5), torch.distributions.Normal(0.0, 1.0)
    )
    assert parts["kl"].item() == pytest.approx(reference.item(), rel=1e-5)
    assert parts["loss"].item() == pytest.approx(2 * reference.item(), rel=1e-5)


def test_normals_pay_for_the_angle_on_pixels_that_have_one():
    images, output = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    images[:, 2, 0] = 1.0  # the second row has no normal
    output[:, 0, 0] = math.sin(math.radians(60))
    output[:, 2, 0] = math.cos(math.radians(60))
    output[:, 1, 1] = 1.0
    assert _losses(AutoencoderObjective(MODALITIES), output, images, NORMAL)["cosine"].item() == pytest.approx(
        0.5, abs=1e-5
    )


def test_labels_pay_cross_entropy_over_the_palette():
    modality = MODALITIES["segmentation"].replace(
        classes=[{"id": 0, "name": "a", "color": [0, 0, 0]}, {"id": 1, "name": "b", "color": [255, 255, 255]}]
    )
    objective = AutoencoderObjective({"segmentation": modality}, temperature=0.25)
    images = build_codec(modality).encode(torch.tensor([[0, 1]]))[None]
    output = torch.full((1, 3, 1, 2), 0.5)  # squared distances: 3 x 1.5^2 to black, 3 x 0.5^2 to white
    logits = -0.25 * torch.tensor([6.75, 0.75])
    expected = -logits.log_softmax(dim=0).mean()  # one pixel is black, the other white
    assert _losses(objective, output, images, 0)["label"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_terms_of_one_modality_do_not_touch_the_others():
    objective = AutoencoderObjective(MODALITIES)
    images, output = torch.randn(4, 3, 4, 4).clamp(-1, 1), torch.randn(4, 3, 4, 4)
    zeros = torch.zeros(4, 4, 2, 2)
    mixed = objective.losses(output, images, torch.arange(4), zeros, zeros)["loss"]
    alone = [_losses(objective, output[i : i + 1], images[i : i + 1], i)["loss"] for i in range(4)]
    torch.testing.assert_close(mixed, torch.stack(alone).mean())


def test_a_tiny_vae_learns():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=12, out_channels=12, block_out_channels=(16,), norm_num_groups=4, mid_block_add_attention=False
    )
    modalities = get_modalities(["rgb", "normal"])
    codec, objective = LatentCodec(vae, modalities), AutoencoderObjective(modalities)
    images = torch.nn.functional.interpolate(torch.randn(8, 3, 2, 2), size=8, mode="bilinear")
    images = torch.nn.functional.normalize(images, dim=1)
    ids = torch.arange(8) % 2
    optimizer, generator = torch.optim.Adam(vae.parameters(), 5e-3), torch.Generator().manual_seed(0)
    history = []
    for _ in range(25):
        loss = objective(codec, images, ids, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-3:]) < 0.7 * sum(history[:3])


def test_negative_weight_is_refused():
    with pytest.raises(UserError, match="'rgb' is -1"):
        AutoencoderObjective(MODALITIES, weights={"rgb": -1})
