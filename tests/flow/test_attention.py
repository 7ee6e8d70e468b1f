"""The attention losses against loops in float64, in the network against maps taken by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmdit.conditioning import Conditioning
from mmdit.flow.attention import (
    ATTENTION_LOSSES,
    attention_choice_loss,
    attention_mask_loss,
    masks_on_grid,
    tapped_blocks,
)
from mmdit.models.transformer import MultimodalDiT

N, B, T, L, S = 2, 3, 4, 5, 3
SUBJECTS = torch.tensor([[-1, 0, 0, -1, -1], [-1] * 5, [1, -1, 2, 2, -1]])


@pytest.fixture
def attention():
    return torch.rand(N, B, T, L, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def masks():
    return torch.rand(S, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_against_a_loop(attention, masks):
    terms = {}
    for b in range(B):
        for token in range(L):
            subject = int(SUBJECTS[b, token])
            if subject < 0:
                continue
            for n in range(N):
                a = attention[n, b, :, token].numpy()
                terms[n, b, token] = np.abs(a / a.max() - masks[subject].numpy().reshape(-1)).mean()
    loss = attention_mask_loss(attention, SUBJECTS, masks)
    assert float(loss) == pytest.approx(np.mean(list(terms.values())), rel=1e-12)
    known = torch.tensor([True, True, False])
    some = [value for (_, b, token), value in terms.items() if (b, token) not in ((2, 2), (2, 3))]
    assert float(attention_mask_loss(attention, SUBJECTS, masks, known)) == pytest.approx(np.mean(some), rel=1e-12)


def test_attention_as_the_mask_is_no_loss():
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    attention = 0.07 * mask.reshape(1, 1, 4, 1)  # however little of the softmax it is
    assert attention_mask_loss(attention, torch.tensor([[0]]), mask) < 1e-6


def test_choice_against_a_loop(attention, masks):
    """Sample 2 alone has two subjects: 1 by its first token, 2 by two."""
    loss, weight = 0.0, 0.0
    for n in range(N):
        for i in range(T):
            read = {1: attention[n, 2, i, 0], 2: attention[n, 2, i, 2] + attention[n, 2, i, 3]}
            for subject, value in read.items():
                covered = float(masks[subject].reshape(-1)[i])
                loss -= covered * float(torch.log(value / (read[1] + read[2])))
                weight += covered
    assert float(attention_choice_loss(attention, SUBJECTS, masks)) == pytest.approx(loss / weight, rel=1e-9)
    assert attention_choice_loss(attention, SUBJECTS, masks, torch.tensor([True, True, False])) == 0
    torch.testing.assert_close(  # as many columns as a sample has subjects, or more
        attention_choice_loss(attention, SUBJECTS, masks, max_subjects=2),
        attention_choice_loss(attention, SUBJECTS, masks),
    )
    doubled = attention * torch.rand(N, B, T, 1, dtype=torch.float64)  # how much of the softmax it is doesn't matter
    torch.testing.assert_close(
        attention_choice_loss(doubled, SUBJECTS, masks), attention_choice_loss(attention, SUBJECTS, masks)
    )


def test_the_best_choice_is_the_probability():
    """Of layouts with "a" on the left three times in four: the choice's optimum says so, the mask's is its mode."""
    left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    layouts = [torch.stack([left, right])] * 3 + [torch.stack([right, left])]
    ids = torch.tensor([[0, 1]])

    def mean(loss, p):
        attention = torch.tensor([[p, 1 - p], [1 - p, p]]).reshape(1, 1, 2, 2)
        return float(sum(loss(attention, ids, masks) for masks in layouts))

    grid = np.linspace(0.01, 0.99, 99)
    best = {name: grid[np.argmin([mean(loss, p) for p in grid])] for name, loss in ATTENTION_LOSSES.items()}
    assert best["choice"] == pytest.approx(0.75, abs=0.011)
    assert best["mask"] == pytest.approx(0.99)


@pytest.mark.parametrize("attention_loss", ATTENTION_LOSSES.values())
def test_without_subjects_it_is_zero_and_has_a_gradient(attention_loss, attention, masks):
    attention.requires_grad_()
    nobody = torch.full_like(SUBJECTS, -1)
    for loss in (
        attention_loss(attention, nobody, masks),
        attention_loss(attention, nobody, masks[:0]),
        attention_loss(attention, SUBJECTS, masks, torch.zeros(S, dtype=torch.bool)),
        attention_loss(0 * attention, nobody, masks),
    ):
        assert loss == 0
        (gradient,) = torch.autograd.grad(loss, attention)
        assert (gradient == 0).all()


@pytest.mark.parametrize("attention_loss", ATTENTION_LOSSES.values())
@pytest.mark.parametrize("max_subjects", [None, 2])
def test_no_loss_asks_the_device_for_a_number(attention_loss, max_subjects, attention, masks):
    """The meta device has none to give: whatever waits for one fails."""
    known = torch.ones(S, dtype=torch.bool)
    inputs = [x.to("meta") for x in (attention, SUBJECTS, masks, known)]
    assert attention_loss(*inputs, max_subjects=max_subjects).shape == ()


def test_gradient_moves_attention_to_the_mask(attention, masks):
    attention.requires_grad_()
    binary = (masks > 0.5).double()
    (gradient,) = torch.autograd.grad(attention_mask_loss(attention, SUBJECTS, binary), attention)
    for b in range(B):
        for token in range(L):
            subject = int(SUBJECTS[b, token])
            got = gradient[:, b, :, token]
            if subject < 0:
                assert (got == 0).all()
                continue
            inside = binary[subject].reshape(-1) > 0
            peaks = attention[:, b, :, token] == attention[:, b, :, token].amax(-1, keepdim=True)
            assert (got[:, ~inside][~peaks[:, ~inside]] > 0).all()
            assert (got[:, inside][~peaks[:, inside]] < 0).all()


def test_how_much_a_token_is_read_is_left_alone(attention, masks):
    """A map and its multiple have one loss, and no gradient leads from one to the other; none overflows where a map underflows.

    With a gradient that stops at the largest value, a token with a small object is read less at every step.
    """
    attention.requires_grad_()
    loss = attention_mask_loss(attention, SUBJECTS, masks)
    (gradient,) = torch.autograd.grad(loss, attention)
    torch.testing.assert_close(
        (gradient * attention).sum(2), torch.zeros(N, B, L, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(attention_mask_loss(0.01 * attention, SUBJECTS, masks), loss)
    faint = (attention.detach().float() * 1e-44).requires_grad_()
    (gradient,) = torch.autograd.grad(attention_mask_loss(faint, SUBJECTS, masks), faint)
    assert torch.isfinite(gradient).all()


def test_two_processes_average_to_one(attention, masks):
    """Their counts differ, 2 and 3: each divides by their mean."""
    whole = attention_mask_loss(attention, SUBJECTS, masks)
    parts = [
        attention_mask_loss(attention[:, rows], SUBJECTS[rows], masks, None, lambda count: torch.full_like(count, 2.5))
        for rows in ([0, 1], [2])
    ]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_choice_over_two_processes(attention, masks):
    """All that counts is in one of them: it divides by half of what covers its locations."""
    whole = attention_choice_loss(attention, SUBJECTS, masks)
    halved = attention_choice_loss(attention[:, 2:], SUBJECTS[2:], masks, None, lambda count: count / 2)
    torch.testing.assert_close(halved / 2, whole)


def test_masks_are_pooled_to_the_grid():
    mask = np.zeros((4, 8), dtype=bool)
    mask[0, 0] = mask[2:, 4:] = True
    pooled, known = masks_on_grid([[mask, None], [], [mask[:, ::-1]]], (2, 2))
    assert pooled.tolist() == [[[0.125, 0], [0, 1]], [[0, 0], [0, 0]], [[0, 0.125], [1, 0]]]
    assert known.tolist() == [True, False, True]
    pooled, known = masks_on_grid([[], []], (2, 2))
    assert (pooled.shape, known.shape) == ((0, 2, 2), (0,))


@pytest.mark.parametrize(("depth", "expected"), [(8, (2, 4, 6)), (28, (7, 14, 21)), (2, (1, 2)), (1, (1,))])
def test_taps_are_spread_over_the_depth(depth, expected):
    assert tapped_blocks(depth) == expected


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = MultimodalDiT(
        sample_size=4, hidden_size=16, depth=3, num_heads=2, num_classes=3, block="cross", qk_norm=None
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def _inputs(network):
    generator = torch.Generator().manual_seed(2)
    latents, t = torch.randn(B, 4, 4, 4, 4, generator=generator), torch.rand(B, 4, generator=generator)
    tokens = torch.randn(B, L, 16, generator=generator).requires_grad_()
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[2, 4] = False
    return (latents, t, torch.zeros(B, 4, dtype=torch.long)), Conditioning(torch.zeros(B, 16), tokens, mask, SUBJECTS)


def test_the_network_returns_the_maps_of_the_tapped_blocks(network):
    """Against softmax(q kᵀ) from what went into the tapped blocks."""
    inputs, prompt = _inputs(network)
    seen = []
    hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in network.blocks]
    output = network(*inputs, prompt, output_attention=(1, 3))
    for hook in hooks:
        hook.remove()
    assert output.attention.shape == (2, B, T, L)
    for row, number in enumerate((1, 3)):
        cross = network.blocks[number - 1].cross
        q = cross.q(F.layer_norm(seen[number - 1], (16,), eps=1e-6))
        k = cross.kv(prompt.tokens)[..., :16]
        for b in range(B):
            keys = k[b][prompt.token_mask[b]]
            heads = [(q[b][:, h] @ keys[:, h].T / 8**0.5).softmax(-1) for h in (slice(0, 8), slice(8, 16))]
            expected = F.pad((heads[0] + heads[1]) / 2, (0, L - len(keys)))
            torch.testing.assert_close(output.attention[row, b], expected, atol=1e-6, rtol=1e-4)
    plain = network(*inputs, prompt)
    assert plain.attention is None
    assert torch.equal(plain.sample, output.sample)
    assert network(*inputs, Conditioning(prompt.vector), output_attention=(1,)).attention is None


def test_gradients_reach_queries_and_keys_alone(network, masks):
    """Of the tapped block; before it everything the tokens of the image went through, behind it nothing."""
    inputs, prompt = _inputs(network)
    output = network(*inputs, prompt, output_attention=(2,))
    attention_mask_loss(output.attention, prompt.subject_ids, masks.float()).backward()
    first, tapped, last = network.blocks
    assert tapped.cross.q.weight.grad.abs().max() > 0
    keys, values = tapped.cross.kv.weight.grad.chunk(2)
    assert keys.abs().max() > 0
    assert (values == 0).all()
    for parameter in (tapped.cross.proj.weight, tapped.attn.qkv.weight, tapped.mlp.fc1.weight, *last.parameters()):
        assert parameter.grad is None
    assert first.cross.proj.weight.grad.abs().max() > 0
    assert (prompt.tokens.grad[1] == 0).all(), "a sample without subjects"
    assert (prompt.tokens.grad[2, 4] == 0).all(), "padding"
    assert (prompt.tokens.grad[0] != 0).any(-1).all(), "words share the softmax with the subjects"


def test_blocks_that_attend_to_no_prompt_are_refused(network):
    inputs, prompt = _inputs(network)
    plain = MultimodalDiT(sample_size=4, hidden_size=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="block 'dit' attends to no prompt"):
        plain(*inputs, prompt, output_attention=(1,))
    with pytest.raises(ValueError, match=r"output_attention is \[4\]: give numbers of blocks from 1 to 3"):
        network(*inputs, prompt, output_attention=(4,))
