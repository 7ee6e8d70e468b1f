from __future__ import annotations

import torch
import torch.nn.functional as F

from mmdit.flow.alignment import alignment_loss, latent_tokens, spatially_normalized


def test_closed_forms() -> None:
    x = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    assert alignment_loss(x, 7 * x).abs() < 1e-6
    torch.testing.assert_close(alignment_loss(x, -x), torch.tensor(2.0))
    orthogonal = torch.tensor([[[-4.0, 3.0], [1.0, 0.0]]])  # cosines 0 and 1
    torch.testing.assert_close(alignment_loss(x, orthogonal), torch.tensor(0.5))


def test_half_precision_features_do_not_overflow() -> None:
    x = torch.full((1, 2, 64), 6e4, dtype=torch.float16)  # squares are beyond float16
    assert alignment_loss(x, x).abs() < 1e-5


def test_smooth_l1_against_its_definition() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    y[0] = x[0] + 0.02
    d = (x - y).abs()
    expected = torch.where(d < 0.05, 0.5 * d**2 / 0.05, d - 0.025).mean()
    torch.testing.assert_close(alignment_loss(x, y, distance="smooth_l1"), expected)


def test_groups_that_are_not_known_do_not_count() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)
    known = torch.tensor([[True, False], [True, True]])
    terms = [1 - F.cosine_similarity(x[b, :, g], y[b, :, g], dim=-1).mean() for b, g in ((0, 0), (1, 0), (1, 1))]
    torch.testing.assert_close(alignment_loss(x, y, known=known), sum(terms) / 3)
    y[0, :, 1] = torch.nan_to_num(y[0, :, 1]) * 1e3
    torch.testing.assert_close(alignment_loss(x, y, known=known), sum(terms) / 3)
    assert alignment_loss(x, y, known=torch.zeros(2, 2, dtype=torch.bool)) == 0
    halves = [
        alignment_loss(
            x[b : b + 1], y[b : b + 1], known=known[b : b + 1], mean_over_processes=lambda _: 1.5 * torch.ones(())
        )
        for b in (0, 1)
    ]
    torch.testing.assert_close(sum(halves) / 2, sum(terms) / 3)  # two processes, gradients averaged
    one = torch.tensor([[True, False], [False, False]])  # of four processes' samples: 1/4 on average
    alone = alignment_loss(x, y, known=one, mean_over_processes=lambda count: count / 4)
    torch.testing.assert_close(alone / 4, terms[0])


def test_spatial_normalisation_is_by_channel_over_the_tokens() -> None:
    torch.manual_seed(0)
    features = (3 + 2 * torch.randn(2, 16, 5)).half()
    out = spatially_normalized(features, gamma=1.0)
    assert out.dtype == torch.float32
    assert out.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(out.std(1), torch.ones(2, 5))
    values = features[1, :, 3].double().numpy()
    expected = (values - 0.6 * values.mean()) / values.std(ddof=1)
    torch.testing.assert_close(
        spatially_normalized(features, 0.6)[1, :, 3].double(), torch.from_numpy(expected), atol=1e-5, rtol=0
    )


def test_tokens_of_latents_are_in_the_order_of_the_patches() -> None:
    latents = torch.arange(2 * 3 * 4 * 4 * 6.0).view(2, 3, 4, 4, 6)
    tokens = latent_tokens(latents, 2)
    assert tokens.shape == (2, 6, 3, 16)
    assert torch.equal(tokens[1, 4, 2], latents[1, 2, :, 2:4, 2:4].flatten())  # row 1, column 1 of 2 x 3 tokens
