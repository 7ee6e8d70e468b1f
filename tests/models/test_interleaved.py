"""The conditioner of interleaved prompts, on states that are given."""

from __future__ import annotations

import pytest
import torch

from mmdit.conditioning import EncodedPrompts
from mmdit.models.conditioners import CONDITIONERS, ClassConditioner
from mmdit.models.interleaved import InterleavedConditioner
from mmdit.models.prompted import PromptInputs
from mmdit.models.transformer import MultimodalDiT
from mmdit.models.widen import start_from

B, L, W, D = 3, 5, 6, 8
LABELS = torch.tensor([1, -1, 3])


@pytest.fixture
def conditioner() -> InterleavedConditioner:
    torch.manual_seed(0)
    made = InterleavedConditioner(10, D, text_width=W)
    made.reset_parameters()
    torch.nn.init.normal_(made.pooled_proj.weight)
    return made


@pytest.fixture
def prompts() -> EncodedPrompts:
    """Sample 0: text; 1: a subject in two tokens; 2: two subjects, and padding at the end."""
    torch.manual_seed(1)
    subjects = torch.tensor([[-1] * L, [-1, 0, 0, -1, -1], [1, -1, 2, -1, -1]])
    mask = torch.tensor([[True] * L, [True] * L, [True, True, True, False, False]])
    states = torch.randn(B, L, W)
    return EncodedPrompts(states, mask, subjects, torch.zeros(0, 1), lambda _: states, torch.ones(B, dtype=torch.bool))


def test_states_are_normed_and_projected(conditioner, prompts):
    out = conditioner(PromptInputs(LABELS, prompts))
    centred = prompts.states - prompts.states.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(out.tokens, normed @ conditioner.token_proj.weight.T + conditioner.token_proj.bias)
    assert torch.equal(out.token_mask, prompts.mask)
    assert torch.equal(out.subject_ids, prompts.subjects)
    classes = ClassConditioner.forward(conditioner, LABELS).vector
    pooled = normed[2, :3].mean(0) @ conditioner.pooled_proj.weight.T
    torch.testing.assert_close(out.vector[2], classes[2] + pooled)


def test_dropped_prompts_are_the_null_prompt(conditioner, prompts):
    prompt = conditioner.drop(PromptInputs(LABELS, prompts), torch.tensor([0.05, 0.5, 0.0999]))
    out = conditioner(prompt)
    assert out.token_mask.any(1).tolist() == [False, True, False]
    assert (out.subject_ids >= 0).any(1).tolist() == [False, True, False]
    null = conditioner.null(1).vector[0]
    assert torch.equal(out.vector[0], null)
    assert torch.equal(out.vector[2], null)


@pytest.mark.parametrize("block", ["cross", "joint"])
def test_without_a_prompt_it_is_the_class_model(prompts, block):
    """One that starts from a class model, and one trained since: in rows without a prompt the bits agree."""
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "hidden_size": D, "depth": 2, "num_heads": 2, "num_classes": 10}
    plain = MultimodalDiT(**sizes).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompted = MultimodalDiT(
        **sizes, block=block, conditioner="interleaved", conditioner_settings={"text_width": W}
    ).eval()
    start_from(prompted, plain)
    latents, times = torch.randn(B, 4, 4, 8, 8), torch.full((B, 4), 0.5)
    roles = torch.zeros(B, 4, dtype=torch.long)

    def sample(network, prompt):
        with torch.no_grad():
            return network(latents, times, roles, network.conditioner(prompt)).sample

    expected = sample(plain, LABELS)
    assert torch.equal(sample(prompted, PromptInputs(LABELS, prompts)), expected), "to begin with prompts add nothing"
    trained = plain.state_dict()
    for name, parameter in prompted.named_parameters():
        if name not in trained:
            torch.nn.init.normal_(parameter, std=0.3)
    assert torch.equal(sample(prompted, LABELS), expected)
    assert torch.equal(sample(prompted, PromptInputs(LABELS)), expected)
    mixed = sample(prompted, PromptInputs(LABELS, prompts.without(torch.tensor([True, False, True]))))
    assert torch.equal(mixed[[0, 2]], expected[[0, 2]])
    assert not torch.allclose(mixed[1], expected[1])


def test_it_is_in_the_table():
    assert CONDITIONERS["interleaved"] is InterleavedConditioner
