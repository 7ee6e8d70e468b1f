"""What diffusers does to the transformer by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT
from mmdit.task import Role


@pytest.fixture(params=["dit", "cross", "joint"])
def model(request: pytest.FixtureRequest) -> MultimodalDiT:
    torch.manual_seed(0)
    made = MultimodalDiT(("rgb", "depth"), 8, 4, 2, 32, 3, 2, num_classes=3, block=request.param).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    return made


@pytest.fixture
def inputs(model: MultimodalDiT) -> tuple[Tensor, Tensor, Tensor, Conditioning]:
    latents = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    conditioning = Conditioning(model.conditioner([0, 1]).vector.detach(), tokens)
    return latents, torch.full((2, 2), 0.5), torch.full((2, 2), int(Role.GENERATE)), conditioning


@pytest.fixture
def count_blocks(model: MultimodalDiT) -> Iterator[Callable[[], int]]:
    """How often the block in the middle ran since the last question."""
    runs: list[int] = []
    inner = model.blocks[1].mlp.register_forward_hook(lambda *_: runs.append(1))

    def count() -> int:
        made = len(runs)
        runs.clear()
        return made

    yield count
    inner.remove()


@torch.no_grad()
def test_first_block_cache(
    model: MultimodalDiT, inputs: tuple[Tensor, Tensor, Tensor, Conditioning], count_blocks: Callable[[], int]
) -> None:
    expected = model(*inputs).sample
    assert count_blocks() == 1
    model.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    assert model.is_cache_enabled
    with model.cache_context("one"):
        assert torch.equal(model(*inputs).sample, expected)
        assert count_blocks() == 1
        torch.testing.assert_close(model(*inputs).sample, expected)  # nothing changed: the blocks behind it are skipped
        assert count_blocks() == 0
        other = model(2 * inputs[0], *inputs[1:]).sample
        assert count_blocks() == 1
    with model.cache_context("other"):
        assert torch.equal(model(*inputs).sample, expected)
        assert count_blocks() == 1
    model.disable_cache()
    assert torch.equal(model(2 * inputs[0], *inputs[1:]).sample, other)


def test_caches_that_do_not_fit(model: MultimodalDiT) -> None:
    with pytest.raises(UserError, match="cache config is a FasterCacheConfig: this model takes FirstBlockCacheConfig"):
        model.enable_cache(FasterCacheConfig())
    assert not model.is_cache_enabled
    with pytest.raises(UserError, match="a model of 1 block has nothing to cache"):
        MultimodalDiT(("rgb",), 8, 4, 2, 32, 1, 2, num_classes=3).enable_cache(FirstBlockCacheConfig())


@torch.no_grad()
def test_layerwise_casting(model: MultimodalDiT, inputs: tuple[Tensor, Tensor, Tensor, Conditioning]) -> None:
    expected = model(*inputs).sample
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert model.blocks[0].attn.qkv.weight.dtype == torch.float8_e4m3fn
    assert model.dtype == torch.bfloat16
    latents, timesteps, roles, conditioning = inputs
    out = model(latents.bfloat16(), timesteps, roles, conditioning.to(dtype=torch.bfloat16)).sample
    assert (out - expected).abs().max() < 0.15 * expected.abs().max()
    assert model.blocks[0].attn.qkv.weight.dtype == torch.float8_e4m3fn


@torch.no_grad()
def test_layerwise_casting_in_the_models_own_dtype(
    model: MultimodalDiT, inputs: tuple[Tensor, Tensor, Tensor, Conditioning]
) -> None:
    expected = model(*inputs).sample
    model.enable_layerwise_casting(torch.bfloat16)
    assert torch.equal(model.head.linears[0].weight.float(), model.head.linears[0].weight.bfloat16().float())
    assert (model(*inputs).sample - expected).abs().max() < 0.05 * expected.abs().max()


def test_attention_backends_say_that_they_have_no_effect(model: MultimodalDiT) -> None:
    with pytest.raises(UserError, match=r"attention backend 'flash' has no effect here.*MMDIT_KERNELS") as caught:
        model.set_attention_backend("flash")
    assert "\n" not in str(caught.value)
