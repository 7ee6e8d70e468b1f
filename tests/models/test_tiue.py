"""The trainable part of text and subjects, with a text encoder that can be computed by hand."""

from __future__ import annotations

import pytest
import torch

from mmdit.conditioning import EncodedPrompts
from mmdit.models.conditioners import CONDITIONERS, ClassConditioner
from mmdit.models.tiue import PromptInputs, TIUEConditioner
from mmdit.models.transformer import MultimodalDiT

B, L, W, P, D = 3, 5, 6, 4, 8


@pytest.fixture
def conditioner() -> TIUEConditioner:
    torch.manual_seed(0)
    made = TIUEConditioner(10, D, text_width=W, image_width=P)
    made.reset_parameters()
    torch.nn.init.normal_(made.pooled_proj.weight)
    return made


@pytest.fixture
def prompts() -> EncodedPrompts:
    """Sample 0: text; sample 1: a subject in two tokens; sample 2: two subjects, and padding at the end."""
    torch.manual_seed(1)
    words = torch.randn(B, L, W)
    subjects = torch.tensor([[-1] * L, [-1, 0, 0, -1, -1], [1, -1, 2, -1, -1]])
    mask = torch.tensor([[True] * L, [True] * L, [True, True, True, False, False]])

    def states(embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings + embeddings.cumsum(1)  # causal, like CLIP's

    def restate(pseudo: torch.Tensor) -> torch.Tensor:
        return states(torch.where((subjects >= 0)[..., None], pseudo[subjects.clamp_min(0)], words))

    return EncodedPrompts(states(words), mask, subjects, torch.randn(3, P), restate, torch.ones(B, dtype=torch.bool))


LABELS = torch.tensor([1, -1, 3])


def test_tokens_are_the_unified_states(conditioner, prompts):
    """h_u = h_y with the vectors at p taken from h_r (section 3.2), written out token by token."""
    out = conditioner(PromptInputs(LABELS, prompts))
    restated = prompts.restate(conditioner.pseudo_word(prompts.subject_embeddings))
    for b in range(B):
        for token in range(L):
            state = restated[b, token] if prompts.subjects[b, token] >= 0 else prompts.states[b, token]
            torch.testing.assert_close(out.tokens[b, token], conditioner.token_proj(conditioner.token_norm(state)))
    assert torch.equal(out.token_mask, prompts.mask)
    assert out.subject_ids.tolist() == prompts.subjects.tolist()


def test_vector_is_class_and_mean_of_the_states(conditioner, prompts):
    out = conditioner(PromptInputs(LABELS, prompts))
    restated = prompts.restate(conditioner.pseudo_word(prompts.subject_embeddings))
    unified = torch.where((prompts.subjects >= 0)[..., None], restated, prompts.states)
    mean = conditioner.token_norm(unified[2, :3]).mean(0)
    classes = ClassConditioner.forward(conditioner, LABELS).vector
    torch.testing.assert_close(out.vector[2], classes[2] + conditioner.pooled_proj(mean))


def test_without_a_prompt_it_is_the_class_conditioner(conditioner, prompts):
    classes = ClassConditioner.forward(conditioner, LABELS)
    for out in (conditioner(LABELS), conditioner(PromptInputs(LABELS))):
        assert torch.equal(out.vector, classes.vector)
        assert out.tokens is None
    nothing = prompts.without(torch.ones(B, dtype=torch.bool))
    out = conditioner(PromptInputs(LABELS, nothing))
    assert torch.equal(out.vector, classes.vector)
    assert not out.token_mask.any()


def test_drop_gives_nothing_text_or_both(conditioner, prompts):
    draw = torch.tensor([0.05, 0.3, 0.46])
    out = conditioner.drop(PromptInputs(LABELS, prompts), draw)
    assert out.class_labels.tolist() == [-1, -1, 3]
    assert out.prompts.present.tolist() == [False, True, True]
    assert (out.prompts.subjects >= 0).any(1).tolist() == [False, False, True]


def test_shares_of_the_draw_are_those_of_the_paper(conditioner, prompts):
    generator = torch.Generator().manual_seed(0)
    shown = (prompts.subjects >= 0).any(1)
    kept = []
    for _ in range(4000):
        out = conditioner.drop(PromptInputs(LABELS, prompts), torch.rand(B, generator=generator)).prompts
        kept.append(out.present.long() + (out.present & (out.subjects >= 0).any(1)))
    counts = torch.bincount(torch.stack(kept)[:, shown].flatten(), minlength=3).double()
    nothing, text, multimodal = (counts / counts.sum()).tolist()
    assert nothing == pytest.approx(0.1, abs=0.015)
    assert text == pytest.approx(0.36, abs=0.025)
    assert multimodal == pytest.approx(0.54, abs=0.025)


def test_gradients_reach_the_pseudo_words_of_their_own_sample(conditioner, prompts):
    out = conditioner(PromptInputs(LABELS, prompts))
    out.tokens[1].square().sum().backward()
    assert conditioner.pseudo_word[0].weight.grad.abs().sum() > 0
    conditioner.zero_grad()
    conditioner(PromptInputs(LABELS, prompts.text_only())).tokens.square().sum().backward()
    assert not conditioner.pseudo_word[0].weight.grad.any()


def test_in_the_transformer_no_prompt_is_the_class_model(prompts):
    """A class model's weights carry over; with no prompt the outputs are its own, bit for bit, other samples' prompts or not."""
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "hidden_size": D, "depth": 2, "num_heads": 2, "num_classes": 10}
    plain = MultimodalDiT(**sizes).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prompted = MultimodalDiT(
        **sizes, block="cross", conditioner="tiue", conditioner_settings={"text_width": W, "image_width": P}
    ).eval()
    for parameter in prompted.parameters():  # trained weights, not only those it begins with
        torch.nn.init.normal_(parameter, std=0.3)
    prompted.load_state_dict(plain.state_dict(), strict=False)
    latents, times = torch.randn(B, 4, 4, 8, 8), torch.full((B, 4), 0.5)
    roles = torch.zeros(B, 4, dtype=torch.long)
    with torch.no_grad():
        expected = plain(latents, times, roles, plain.conditioner(LABELS)).sample
        none = prompted(latents, times, roles, prompted.conditioner(PromptInputs(LABELS))).sample
        some = prompts.without(torch.tensor([True, False, True]))
        mixed = prompted(latents, times, roles, prompted.conditioner(PromptInputs(LABELS, some))).sample
    assert torch.equal(none, expected)
    assert torch.equal(mixed[[0, 2]], expected[[0, 2]])
    assert not torch.allclose(mixed[1], expected[1])


def test_it_is_in_the_table():
    assert CONDITIONERS["tiue"] is TIUEConditioner


def test_weights_of_pseudo_words_have_a_gradient_without_subjects(conditioner, prompts):
    """Of zero, and the tokens are the same: DistributedDataParallel waits for the gradient of every weight."""
    text = prompts.text_only()
    expected = conditioner.eval()(PromptInputs(LABELS, text)).tokens
    tokens = conditioner.train()(PromptInputs(LABELS, text)).tokens
    assert torch.equal(tokens, expected)
    tokens.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in conditioner.pseudo_word.parameters())
