"""The whole network against a naive re-implementation, and what diffusers asks of a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.models.transformer import MultimodalDiT
from mmdit.task import Role

MakeModel = Callable[..., MultimodalDiT]
MakeInputs = Callable[..., tuple[Tensor, Tensor, Tensor, Conditioning]]


def naive_mmgen(weights: dict[str, Tensor], latents: Tensor, t: Tensor, task: Tensor, label: Tensor) -> Tensor:
    """MMGen's network (arXiv 2503.20644) for M = 4, C = 4, p = 2, D = 32, 2 heads, by plain operations.

    ``task`` (B, D) is the entry of its task table.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    b, m, channels, height, width = latents.shape
    h, w, d = height // 2, width // 2, 32
    kernel = weights["patch_embed.proj.weight"].view(d, m * channels, 2, 2)
    x = F.conv2d(latents.flatten(1, 2), kernel, weights["patch_embed.proj.bias"], stride=2).flatten(2).transpose(1, 2)
    omega = 10000 ** (-torch.arange(d // 4, dtype=torch.float64) / (d // 4))
    row, column = (
        g.flatten()[:, None] * omega for g in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    )
    x = x + torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1).float()

    frequency = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    embedded = []
    for i in range(m):
        angle = t[:, i : i + 1] * frequency
        embedded.append(
            linear(F.silu(linear(torch.cat([angle.cos(), angle.sin()], 1), "time_embed.mlp.0")), "time_embed.mlp.2")
        )
    c = linear(F.silu(linear(torch.cat(embedded, 1), "time_embed.fuse.0")), "time_embed.fuse.2")
    c = c + task + weights["conditioner.embedding_table.weight"][label]

    for n in range(2):
        parts = linear(F.silu(c), f"blocks.{n}.modulation.1")[:, None].split(d, dim=-1)
        y = norm(x) * (1 + parts[1]) + parts[0]
        q, k, v = (z.view(b, -1, 2, 16).transpose(1, 2) for z in linear(y, f"blocks.{n}.attn.qkv").split(d, dim=-1))
        y = ((q @ k.transpose(2, 3)) / 4).softmax(-1) @ v
        x = x + parts[2] * linear(y.transpose(1, 2).flatten(2), f"blocks.{n}.attn.proj")
        y = norm(x) * (1 + parts[4]) + parts[3]
        y = F.gelu(linear(y, f"blocks.{n}.mlp.fc1"), approximate="tanh")
        x = x + parts[5] * linear(y, f"blocks.{n}.mlp.fc2")

    out = torch.empty_like(latents)
    for i in range(m):
        shift, scale = linear(F.silu(c), f"head.norms.{i}.modulation.1")[:, None].split(d, dim=-1)
        patches = linear(norm(x) * (1 + scale) + shift, f"head.linears.{i}")  # (B, T, p p C)
        out[:, i] = torch.einsum("nhwpqc->nchpwq", patches.view(b, h, w, 2, 2, channels)).reshape(latents[:, i].shape)
    return out


def test_the_default_network_is_mmgens(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model()
    latents, t, _, conditioning = make_inputs(model, batch=3)
    base, table = model.role_embed.base, model.role_embed.table
    for given in (None, 0, 3):
        roles = torch.full((3, 4), int(Role.GENERATE))
        task = base + table[:, Role.GENERATE].sum(0)
        if given is not None:
            roles[:, given] = Role.CONDITION
            task = task - table[given, Role.GENERATE] + table[given, Role.CONDITION]
        with torch.no_grad():
            out = model(latents, t, roles, conditioning).sample
            expected = naive_mmgen(model.state_dict(), latents, t, task.expand(3, -1), torch.arange(3))
        assert out.std() > 0.05
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)


def test_xl_has_mmgens_parameters() -> None:
    """By the list of parts of SiT-XL/2 with MMGen's additions; on the meta device, so nothing is allocated."""
    with torch.device("meta"):
        model = MultimodalDiT(alignment_depth=8)
    d = 1152
    linear = lambda i, o: i * o + o  # noqa: E731
    block = linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d) + linear(d, 6 * d)
    time = linear(256, d) + linear(d, d // 2) + linear(4 * d // 2, d) + linear(d, d)
    head = 4 * (linear(d, 2 * d) + linear(d, 16))
    projector = linear(d, 2048) + linear(2048, 2048) + linear(2048, 768)
    roles = d + 4 * 4 * d  # MMGen: 5 d
    expected = 28 * block + linear(64, d) + time + 1001 * d + roles + head + projector
    assert sum(p.numel() for p in model.parameters()) == expected


def test_starts_at_zero_velocity() -> None:
    torch.manual_seed(0)
    model = MultimodalDiT(sample_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=5)
    out = model(
        torch.randn(2, 4, 4, 8, 8), torch.rand(2, 4), torch.zeros(2, 4, dtype=torch.long), model.conditioner([0, 1])
    )
    assert (out.sample == 0).all()
    assert all((block.modulation[1].weight == 0).all() for block in model.blocks)


def test_a_seed_gives_the_same_weights_in_every_version() -> None:
    """The last two numbers of some weights in version 0.1.0, and the generator's next number."""
    expected = {
        "patch_embed.proj.weight": [-0.1493334, 0.0860576],
        "time_embed.mlp.0.weight": [-0.0140648, 0.0509402],
        "time_embed.fuse.2.weight": [-0.1992694, 0.1612644],
        "role_embed.base": [-0.0187193, 0.0141352],
        "role_embed.table": [0.0048406, -0.0062992],
        "conditioner.embedding_table.weight": [0.0013786, 0.0006624],
        "blocks.0.attn.qkv.weight": [-0.1312543, 0.1690767],
        "blocks.1.mlp.fc2.weight": [-0.0301917, -0.048267],
        "projector.layers.4.weight": [0.2286792, 0.2468103],
    }
    torch.manual_seed(0)
    size = {"sample_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = MultimodalDiT(**size, alignment_depth=1, alignment_dim=8, alignment_hidden_size=16)
    state = model.state_dict()
    for name, values in expected.items():
        torch.testing.assert_close(state[name].flatten()[-2:], torch.tensor(values), atol=1e-6, rtol=0, msg=name)
    assert torch.rand(1).item() == pytest.approx(0.8788060545921326)
    assert len(state) == 55


def test_a_second_time_begins_as_nothing(make_inputs: MakeInputs) -> None:
    torch.manual_seed(0)
    size = {"sample_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 2, "num_classes": 5}
    model = MultimodalDiT(**size, second_time=True)
    torch.nn.init.normal_(model.head.linears[0].weight)
    inputs, later = make_inputs(model), torch.rand(2, 4)
    expected = model(*inputs).sample
    assert torch.equal(model(*inputs, timesteps_next=later).sample, expected)
    for embedding in ("fused", "sum"):
        other = MultimodalDiT(**size, second_time=True, time_embedding=embedding)
        assert other.next_time_embed is not None
        assert (other.next_time_embed(later) == 0).all()
    assert model.next_time_embed is not None
    for part in (model.next_time_embed, model.head.norms):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    assert torch.equal(model(*inputs).sample, model(*inputs, timesteps_next=None).sample)
    first = model(*inputs, timesteps_next=later).sample
    assert (first - model(*inputs).sample).abs().max() > 1e-2
    assert (first - model(*inputs, timesteps_next=later / 2).sample).abs().max() > 1e-3


@pytest.mark.parametrize("block", ["dit", "cross"])
def test_export(make_model: MakeModel, make_inputs: MakeInputs, block: str) -> None:
    """torch.export sees through the conditioning; the program takes the very same arguments, of any number of samples."""
    model = make_model(block=block)
    latents, t, roles, conditioning = make_inputs(model)
    if block == "cross":
        tokens = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(4))
        mask = torch.tensor([[True, True, False], [False, False, False]])
        conditioning = Conditioning(conditioning.vector.detach(), tokens, mask)
    inputs = (latents, t, roles, conditioning)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    of_prompt = [{0: batch}] if block == "dit" else [{0: batch}, *[{0: batch, 1: length}] * 2]
    program = torch.export.export(
        model, inputs, {"return_dict": False}, dynamic_shapes=(*[{0: batch}] * 3, of_prompt, None)
    )
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*inputs, return_dict=False)[0], model(*inputs).sample)
    latents, t, roles, conditioning = make_inputs(model, 3)
    if block == "cross":
        tokens = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(5))
        conditioning = Conditioning(conditioning.vector.detach(), tokens, torch.rand(3, 5) > 0.4)
    again = (latents, t, roles, conditioning)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*again, return_dict=False)[0], model(*again).sample)


@pytest.mark.parametrize("config", [{}, {"qk_norm": "rms_norm", "position_embedding": "rope"}], ids=["mmgen", "modern"])
@pytest.mark.parametrize("size", [(4, 12), (16, 8)])
def test_sizes_that_are_not_square(make_model: MakeModel, make_inputs: MakeInputs, config: dict, size: tuple) -> None:
    model = make_model(**config)
    inputs = make_inputs(model, 2, *size)
    out = model(*inputs).sample
    assert out.shape == inputs[0].shape
    assert out.std() > 0


def test_any_modalities_and_channels(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model(modalities=["rgb", "albedo"], in_channels=16, patch_size=1)
    inputs = make_inputs(model)
    assert inputs[0].shape == (2, 2, 16, 8, 8)
    assert model(*inputs).sample.shape == (2, 2, 16, 8, 8)


def test_samples_do_not_see_each_other(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model(qk_norm="rms_norm", position_embedding="rope")
    latents, t, roles, conditioning = make_inputs(model, batch=3)
    whole = model(latents, t, roles, conditioning).sample
    alone = model(latents[1:2], t[1:2], roles[1:2], Conditioning(conditioning.vector[1:2])).sample
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)


def test_every_input_matters(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model()
    latents, t, roles, conditioning = make_inputs(model)
    out = model(latents, t, roles, conditioning).sample
    for changed in (
        model(latents + 0.1, t, roles, conditioning),
        model(latents, 1 - t, roles, conditioning),
        model(latents, t, (roles + 1) % 2, conditioning),
        model(latents, t, roles, model.conditioner([4, 4])),
    ):
        assert (changed.sample - out).abs().max() > 1e-3
    shared = model(latents, t, roles, model.conditioner(None)).sample  # a vector (1, D) serves the batch
    torch.testing.assert_close(shared, model(latents, t, roles, model.conditioner([None, None])).sample)


def test_alignment_tap(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model(alignment_depth=1, alignment_dim=6, alignment_hidden_size=12)
    inputs = make_inputs(model)
    out = model(*inputs, output_alignment=True)
    assert out.alignment.shape == (2, 16, 6)
    assert model(*inputs).alignment is None
    # the tap is after the first block: the second does not touch it
    torch.nn.init.zeros_(model.blocks[1].mlp.fc2.weight)
    torch.testing.assert_close(model(*inputs, output_alignment=True).alignment, out.alignment)
    torch.nn.init.zeros_(model.blocks[0].mlp.fc2.weight)
    assert (model(*inputs, output_alignment=True).alignment - out.alignment).abs().max() > 1e-3


def test_tuple_equals_dict(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model()
    inputs = make_inputs(model)
    assert torch.equal(model(*inputs, return_dict=False)[0], model(*inputs).sample)


@pytest.mark.parametrize("config", [{}, {"qk_norm": "rms_norm", "position_embedding": "rope", "alignment_depth": 2}])
def test_gradients_reach_everything_and_checkpointing_changes_nothing(
    make_model: MakeModel, make_inputs: MakeInputs, config: dict[str, Any]
) -> None:
    results = []
    for checkpointing in (False, True):
        model = make_model(**config).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        out = model(*make_inputs(model), output_alignment="alignment_depth" in config)
        loss = out.sample.square().mean() + (0 if out.alignment is None else out.alignment.square().mean())
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    (loss, gradients), (loss_checkpointed, gradients_checkpointed) = results
    torch.testing.assert_close(loss, loss_checkpointed)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients_checkpointed[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str
)
def test_dtypes(make_model: MakeModel, make_inputs: MakeInputs, dtype: torch.dtype, tolerance: float) -> None:
    model = make_model(qk_norm="rms_norm", position_embedding="rope")
    expected = model(*make_inputs(model)).sample
    model = model.to(dtype)
    out = model(*make_inputs(model)).sample
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"qk_norm": "rms"}, "unknown qk_norm 'rms'"),
        ({"position_embedding": "sin"}, "'sin'.*did you mean 'sincos'"),
        ({"prediction": "noise"}, "unknown prediction 'noise'"),
        ({"block": "mmdit"}, "unknown block 'mmdit'"),
        ({"conditioner": "clas"}, "unknown conditioner 'clas': did you mean 'class'"),
        ({"conditioner_settings": {"width": 3}}, "conditioner 'class' does not take conditioner_settings"),
        ({"modalities": []}, r"modalities are \[\]"),
        ({"modalities": ["rgb", "rgb"]}, "different names"),
        ({"hidden_size": 30, "num_heads": 4}, "hidden_size 30 is not a multiple of num_heads 4"),
        ({"sample_size": 7}, "sample_size 7 is not a multiple of patch_size 2"),
        (
            {"sample_shape": [8, 9]},
            r"sample_shape is \[8, 9\]: give \(height, width\), the longer side as sample_size, 8",
        ),
        ({"sample_shape": [8]}, r"sample_shape is \[8\]"),
        ({"sample_shape": [8, "4"]}, r"sample_shape is \[8, '4'\]"),
        ({"sample_shape": [8, 5]}, r"sample_shape \[8, 5\]: both must be multiples of patch_size 2"),
        ({"alignment_depth": 3}, "alignment_depth is 3: give 1 to depth = 2"),
    ],
)
def test_bad_config(make_model: MakeModel, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_model(**config)


def test_bad_shapes(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    model = make_model()
    latents, t, roles, conditioning = make_inputs(model)
    with pytest.raises(ValueError, match=r"\(2, 16, 8, 8\): this model takes \(B, 4, 4, H, W\)"):
        model(latents.flatten(1, 2), t, roles, conditioning)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 8, 8\): this model takes \(B, 4, 4, H, W\)"):
        model(latents[:, :3], t, roles, conditioning)
    with pytest.raises(ValueError, match="7 x 8 is not a multiple of the patch size 2"):
        model(latents[..., :7, :], t, roles, conditioning)
    with pytest.raises(ValueError, match=r"both must be \(B, M\) = \(2, 4\)"):
        model(latents, t[:, 0], roles, conditioning)
    with pytest.raises(ValueError, match="timesteps_next is given to a model of one time"):
        model(latents, t, roles, conditioning, timesteps_next=t)
    with pytest.raises(ValueError, match=r"timesteps_next is \(2,\): must be \(B, M\) = \(2, 4\)"):
        make_model(second_time=True)(latents, t, roles, conditioning, timesteps_next=t[:, 0])


class TestDiffusersModel:
    """What diffusers' own test-suite asks of a model."""

    def test_save_and_load(self, make_model: MakeModel, make_inputs: MakeInputs, tmp_path: Path) -> None:
        model = make_model(qk_norm="rms_norm", alignment_depth=1)
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["modalities"] == ["rgb", "depth", "normal", "segmentation"]
        assert config["conditioner"] == "class"
        for added in (
            "conditioner",
            "conditioner_settings",
            "second_time",
        ):  # a folder of version 0.1.0 has none of these
            del config[added]
        (tmp_path / "config.json").write_text(json.dumps(config))
        loaded = MultimodalDiT.from_pretrained(tmp_path)
        assert not loaded.training
        inputs = make_inputs(model)
        torch.testing.assert_close(loaded(*inputs).sample, model(*inputs).sample)
        torch.testing.assert_close(
            loaded.conditioner([2]).vector, model.conditioner([2]).vector
        )  # saved with the model

    def test_variants(self, make_model: MakeModel, tmp_path: Path) -> None:
        model = make_model()
        model.half().save_pretrained(tmp_path, variant="fp16")
        assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
        loaded = MultimodalDiT.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.bfloat16)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        with pytest.raises(OSError, match="diffusion_pytorch_model"):
            MultimodalDiT.from_pretrained(tmp_path)

    @pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
    def test_half_precision_files_load_in_float32(
        self, make_model: MakeModel, tmp_path: Path, low_cpu_mem_usage: bool
    ) -> None:
        make_model().half().save_pretrained(tmp_path)
        loaded = MultimodalDiT.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}

    def test_shards(self, make_model: MakeModel, make_inputs: MakeInputs, tmp_path: Path) -> None:
        model = make_model()
        model.save_pretrained(tmp_path, max_shard_size="40KB")
        index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
        files = set(index["weight_map"].values())
        assert len(files) > 1
        assert sum(len(load_file(tmp_path / name)) for name in files) == len(model.state_dict())
        inputs = make_inputs(model)
        torch.testing.assert_close(MultimodalDiT.from_pretrained(tmp_path)(*inputs).sample, model(*inputs).sample)

    def test_from_config(self, make_model: MakeModel) -> None:
        model = make_model(position_embedding="rope", prediction="sample")
        copy = MultimodalDiT.from_config(model.config)
        assert dict(copy.config) == dict(model.config)
        assert [(n, p.shape) for n, p in copy.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]

    def test_layerwise_casting(self, make_model: MakeModel, make_inputs: MakeInputs) -> None:
        model = make_model()
        inputs = make_inputs(model)
        expected = model(*inputs).sample
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        assert model.blocks[0].attn.qkv.weight.dtype == torch.float8_e4m3fn
        latents, t, roles, _ = inputs
        out = model(latents, t, roles, model.conditioner(torch.arange(2))).sample
        assert out.dtype == torch.float32
        assert np.corrcoef(out.detach().flatten(), expected.detach().flatten())[0, 1] > 0.97
        assert model.conditioner.null(2).vector.shape == (2, 32)

    def test_offloaded_weights(self, make_model: MakeModel, make_inputs: MakeInputs) -> None:
        """Sequential offloading: weights live elsewhere, and come back for the call of the module that owns them."""
        accelerate = pytest.importorskip("accelerate")
        model = make_model(qk_norm="rms_norm", position_embedding="rope")
        inputs = make_inputs(model)
        expected, null = model(*inputs).sample.detach(), model.conditioner.null(2).vector.detach()
        accelerate.cpu_offload(model, execution_device="cpu")
        assert model.blocks[0].attn.qkv.weight.is_meta
        torch.testing.assert_close(model(*inputs).sample, expected)
        torch.testing.assert_close(model.conditioner.null(2).vector, null)
        torch.testing.assert_close(model.conditioner([0, 1]).vector, inputs[3].vector)

    def test_attributes_and_switches(self, make_model: MakeModel) -> None:
        model = make_model()
        model.note = "kept"
        assert model.note == "kept"
        assert model.config.hidden_size == 32
        with pytest.raises(AttributeError, match="'MultimodalDiT' object has no attribute 'does_not_exist'"):
            _ = model.does_not_exist
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
        model.disable_gradient_checkpointing()
        assert not model.is_gradient_checkpointing

    def test_averaged_by_diffusers(self, make_model: MakeModel, make_inputs: MakeInputs, tmp_path: Path) -> None:
        model = make_model()
        average = EMAModel(model.parameters(), model_cls=MultimodalDiT, model_config=model.config)
        average.step(model.parameters())
        average.save_pretrained(tmp_path)
        loaded = EMAModel.from_pretrained(tmp_path, MultimodalDiT)
        assert all(torch.equal(a, b) for a, b in zip(loaded.shadow_params, model.parameters(), strict=True))

    @pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
    def test_group_offloading(self, make_model: MakeModel, make_inputs: MakeInputs, offload_type: str) -> None:
        """Groups of layers come and go; on one device their hooks are all that there is to see."""
        model = make_model(qk_norm="rms_norm", position_embedding="rope")
        inputs = make_inputs(model)
        expected = model(*inputs).sample.detach()
        model.enable_group_offload(torch.device("cpu"), offload_type=offload_type, num_blocks_per_group=1)
        for _ in range(2):
            assert torch.equal(model(*inputs).sample, expected)

    def test_compile_repeated_blocks(self, make_model: MakeModel, make_inputs: MakeInputs) -> None:
        model = make_model(qk_norm="rms_norm", position_embedding="rope")
        inputs = make_inputs(model)
        with torch.no_grad():
            expected = model(*inputs).sample
            model.compile_repeated_blocks(fullgraph=True, backend="eager")
            torch.testing.assert_close(model(*inputs).sample, expected)


def test_shape_that_it_is_trained_on(make_model: MakeModel, tmp_path: Path) -> None:
    """It changes no number: positions span the longer side in both directions, as before it was recorded."""
    square, wide = make_model(), make_model(sample_shape=[4, 8])
    assert (square.latent_shape, wide.latent_shape) == ((8, 8), (4, 8))
    assert (square.position_embed.base_size, wide.position_embed.base_size) == (4, 4)
    wide.save_pretrained(tmp_path)
    assert MultimodalDiT.from_pretrained(tmp_path).latent_shape == (4, 8)


def test_a_second_head_reads_a_middle_block_and_changes_nothing_else(make_model, make_inputs) -> None:
    model = make_model(depth=3, internal_guidance_depth=2)
    plain = make_model(depth=3)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("internal_head.")})
    inputs = make_inputs(model)
    read: list[tuple[torch.Tensor, ...]] = []
    model.internal_head.register_forward_hook(lambda head, args, output: read.append(args))
    out = model(*inputs, output_internal=True)
    short = make_model(depth=2)  # its last head is our second
    weights = {
        k: v for k, v in model.state_dict().items() if not k.startswith(("internal_head.", "head.", "blocks.2."))
    }
    heads = {k.removeprefix("internal_"): v for k, v in model.state_dict().items() if k.startswith("internal_head.")}
    short.load_state_dict(weights | heads)
    torch.testing.assert_close(out.internal_sample, short(*inputs).sample)
    assert torch.equal(out.sample, plain(*inputs).sample)
    assert model(*inputs).internal_sample is None
    assert len(read) == 1, "it is not computed unless it is asked for"
    assert torch.equal(model(*inputs, output_internal=True, return_dict=False)[2], out.internal_sample)
    with pytest.raises(ValueError, match="set internal_guidance_depth"):
        plain(*inputs, output_internal=True)
