"""Converted models against the official code itself, in checkouts named by environment variables; skipped without them.

MMDIT_MMGEN_CHECKOUT github.com/jiepengwang/MMGen, MMDIT_REPA_CHECKOUT github.com/sihyun-yu/REPA, MMDIT_SIT_CHECKOUT
github.com/willisma/SiT. ``pytest -rP`` prints the largest differences.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mmdit.flow.schedulers import make_scheduler
from mmdit.models.convert import convert_state_dict
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.task import Role

OUTPUT_TOLERANCE, TRAJECTORY_TOLERANCE = 1e-5, 1e-4
STEPS, BATCH, NUM_CLASSES = 50, 2, 10
# hidden_size, depth, num_heads, input_size; the second has XL's head dimension, 72
SIZES = {"tiny": (32, 2, 2, 8), "head72": (288, 4, 4, 16)}
sizes = pytest.mark.parametrize("size", SIZES)


def official_module(variable: str, path: str) -> ModuleType:
    """Import a file (or a package folder) of a checkout under a name of its own."""
    if variable not in os.environ:
        pytest.skip(f"{variable} names no checkout of the official code")
    file = Path(os.environ[variable]) / path
    is_package = file.is_dir()
    name = f"official_{variable.split('_')[1].lower()}_{file.stem}"
    spec = importlib.util.spec_from_file_location(
        name,
        file / "__init__.py" if is_package else file,
        submodule_search_locations=[str(file)] if is_package else None,
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def randomized(network: nn.Module) -> nn.Module:
    """Random values in all weights, those that start at zero included, on the scale that keeps activations near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "pos_embed":
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
                std = 0.5 if "embedding_table" in name else fan_in**-0.5
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def official_sit(variable: str, path: str, size: str, **settings: Any) -> nn.Module:
    hidden_size, depth, num_heads, input_size = SIZES[size]
    return randomized(
        official_module(variable, path).SiT(
            input_size=input_size,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            num_classes=NUM_CLASSES,
            **settings,
        )
    )


def mmgen(size: str) -> nn.Module:
    return official_sit(
        "MMDIT_MMGEN_CHECKOUT",
        "models/sit.py",
        size,
        encoder_depth=2,
        z_dims=[24],
        projector_dim=48,
        num_tasks=4,
        is_mmcat_diff=True,
        use_decouple_task=True,
        use_taskcond_emb=True,
        qk_norm=False,
        fused_attn=True,
    )


def repa(size: str) -> nn.Module:
    hidden_size = SIZES[size][0]
    return official_sit(
        "MMDIT_REPA_CHECKOUT",
        "models/sit.py",
        size,
        decoder_hidden_size=hidden_size,
        encoder_depth=2,
        z_dims=[24],
        projector_dim=48,
        use_cfg=True,
        qk_norm=False,
        fused_attn=True,
    )


def sit(size: str, learn_sigma: bool = False) -> nn.Module:
    return official_sit("MMDIT_SIT_CHECKOUT", "models.py", size, learn_sigma=learn_sigma)


def converted(format: str, network: nn.Module, size: str) -> MultimodalDiT:
    args = {"encoder_depth": 2, "num_classes": NUM_CLASSES}
    result = convert_state_dict(format, network.state_dict(), args, num_heads=SIZES[size][2])
    model = MultimodalDiT(**result.config)
    model.load_state_dict(result.state_dict)
    return model.eval()


def pipeline(model: MultimodalDiT, scheduler: str) -> MultimodalDiTPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    pipe = MultimodalDiTPipeline(model, vae.eval(), make_scheduler(scheduler))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(model: MultimodalDiT, x: Tensor, t: Tensor, labels: Tensor, roles: Tensor) -> Tensor:
    m = len(model.config.modalities)
    return model(x.unflatten(1, (m, -1)), t, roles, model.conditioner(labels)).sample.flatten(1, 2)


def inputs(model: MultimodalDiT) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    m, side = len(model.config.modalities), model.config.sample_size
    x = torch.randn(BATCH, 4 * m, side, side, generator=generator)
    return x, torch.rand(BATCH, m, generator=generator), torch.tensor([3, NUM_CLASSES])


def report(what: str, difference: Tensor, scale: Tensor, tolerance: float) -> None:
    largest = float(difference.abs().max())
    print(f"{what}: largest difference {largest:.2e} of values up to {float(scale.abs().max()):.1f}")
    assert largest < tolerance


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the official samplers, which draw in float64 or with no generator, draw what ours draws from a seed."""

    randn = torch.randn

    def start(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(shape: Any) -> Tensor:
            return randn(tuple(shape), generator=generator)

        monkeypatch.setattr(torch, "randn_like", lambda x: draw(x.shape).to(x))
        monkeypatch.setattr(torch, "randn", lambda *shape, **kwargs: draw(shape[0] if len(shape) == 1 else shape))

    return start


@sizes
@pytest.mark.parametrize("task", range(5))
def test_mmgen_outputs(size, task):
    network = mmgen(size)
    model = converted("mmgen", network, size)
    x, t, labels = inputs(model)
    roles = torch.full((BATCH, 4), int(Role.GENERATE))
    if task:
        roles[:, task - 1] = Role.CONDITION
    per_channel = t.repeat_interleave(4, dim=1)[:, :, None, None]
    expected = network(x, per_channel, labels, lis_idx_taskcond_rand=torch.full((BATCH,), task))[0]
    report(f"mmgen {size} task {task}", ours(model, x, t, labels, roles) - expected, expected, OUTPUT_TOLERANCE)


def test_mmgen_projector():
    network = mmgen("tiny")
    model = converted("mmgen", network, "tiny")
    x, t, labels = inputs(model)
    roles = torch.full((BATCH, 4), int(Role.GENERATE))
    _, expected = network(x, t.repeat_interleave(4, dim=1)[:, :, None, None], labels)
    out = model(x.unflatten(1, (4, 4)), t, roles, model.conditioner(labels), output_alignment=True)
    report("mmgen projector", out.alignment - expected[0], expected[0], OUTPUT_TOLERANCE)


@sizes
@pytest.mark.parametrize("scale", [1.0, 1.8])
def test_mmgen_euler(size, scale):
    network, samplers = mmgen(size), official_module("MMDIT_MMGEN_CHECKOUT", "samplers.py")
    model = converted("mmgen", network, size)
    noise = inputs(model)[0]
    labels = torch.tensor([3, 7])
    expected = samplers.euler_sampler(
        network, noise, labels, num_steps=STEPS, cfg_scale=scale, use_decouple_task=True
    ).unflatten(1, (4, 4))
    out = pipeline(model, "euler")(
        labels,
        latents=noise.unflatten(1, (4, 4)),
        num_inference_steps=STEPS,
        guidance_scale=scale,
        output_type="latent",
    ).latents
    report(f"mmgen {size} Euler, guidance {scale}", out - expected, expected, TRAJECTORY_TOLERANCE)


@sizes
@pytest.mark.parametrize("given", [None, 0, 1, 3])
def test_mmgen_euler_maruyama(size, given, same_noise):
    """All modalities from a class, or the others from one that is held at t = 0.005."""
    network, samplers = mmgen(size), official_module("MMDIT_MMGEN_CHECKOUT", "samplers.py")
    model = converted("mmgen", network, size)
    pipe = pipeline(model, "euler_maruyama")
    noise = inputs(model)[0].unflatten(1, (4, 4))
    labels = torch.tensor([3, 7])
    start, conditions = noise.clone(), {}
    if given is not None:
        name = list(pipe.modalities)[given]
        side = model.config.sample_size * 8
        raw = torch.rand(BATCH, side, side, 3, generator=torch.Generator().manual_seed(2)).numpy()
        raw = raw if name == "rgb" else raw[..., 0] if name == "depth" else (raw[..., 0] * 60).astype("int64")
        conditions = {name: raw}
        clean = pipe(labels, conditions=conditions, num_inference_steps=1, output_type="latent").latents[:, given]
        start[:, given] = 0.005 * noise[:, given] + (1 - 0.005) * clean
    same_noise(5)
    expected = samplers.euler_maruyama_sampler(
        network, start.flatten(1, 2), labels, num_steps=STEPS, condition_task=given, cfg_scale=1.8
    ).unflatten(1, (4, 4))
    same_noise(5)  # ours draws through the same function, in the same order
    out = pipe(
        labels,
        conditions=conditions,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=1.8,
        output_type="latent",
    ).latents
    kept = [i for i in range(4) if i != given]  # a condition is returned clean
    report(
        f"mmgen {size} Euler-Maruyama, given {given}",
        (out - expected)[:, kept],
        expected[:, kept],
        TRAJECTORY_TOLERANCE,
    )


@sizes
def test_repa(size, same_noise):
    network, samplers = repa(size), official_module("MMDIT_REPA_CHECKOUT", "samplers.py")
    model = converted("repa", network, size)
    x, t, labels = inputs(model)
    expected = network(x, t[:, 0], labels)[0]
    report(
        f"repa {size}",
        ours(model, x, t, labels, torch.zeros(BATCH, 1, dtype=torch.long)) - expected,
        expected,
        OUTPUT_TOLERANCE,
    )

    labels = torch.tensor([3, 7])
    latents = x[:, None]
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "latent"}
    expected = samplers.euler_sampler(network, x, labels, num_steps=STEPS)
    out = pipeline(model, "euler")(labels, latents=latents, **settings).latents[:, 0]
    report(f"repa {size} Euler", out - expected, expected, TRAJECTORY_TOLERANCE)
    same_noise(5)
    expected = samplers.euler_maruyama_sampler(network, x, labels, num_steps=STEPS)
    same_noise(5)
    out = pipeline(model, "euler_maruyama")(labels, latents=latents, **settings).latents[:, 0]
    report(f"repa {size} Euler-Maruyama", out - expected, expected, TRAJECTORY_TOLERANCE)


@sizes
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_sit(size, learn_sigma, same_noise, monkeypatch):
    """SiT's velocity is data - noise at s = 1 - t; its samplers run from s = 0 to 1."""
    network = sit(size, learn_sigma)
    model = converted("sit", network, size)
    x, t, labels = inputs(model)
    expected = -network(x, (1 - t)[:, 0], labels)
    report(
        f"sit {size}, learn_sigma {learn_sigma}",
        ours(model, x, t, labels, torch.zeros(BATCH, 1, dtype=torch.long)) - expected,
        expected,
        OUTPUT_TOLERANCE,
    )

    # transport's other solvers need torchdiffeq; the fixed-step ones of interest do not
    monkeypatch.setitem(sys.modules, "torchdiffeq", SimpleNamespace(odeint=None))
    transport = official_module("MMDIT_SIT_CHECKOUT", "transport")
    labels = torch.tensor([3, 7])
    latents = x[:, None]
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "latent"}
    drift = transport.create_transport().get_drift()
    expected = x.double()
    for i in range(STEPS):
        s = torch.full((BATCH,), i / STEPS)
        expected = expected + drift(expected.float(), s, network, y=labels).double() / STEPS
    out = pipeline(model, "euler")(labels, latents=latents, **settings).latents[:, 0]
    report(f"sit {size} Euler", out - expected, expected, TRAJECTORY_TOLERANCE)
    sample = transport.Sampler(transport.create_transport()).sample_sde(
        diffusion_form="sigma", num_steps=STEPS, last_step="Mean", last_step_size=0.04
    )
    same_noise(5)
    expected = sample(x, network, y=labels)[-1]
    same_noise(5)
    out = pipeline(model, "euler_maruyama")(labels, latents=latents, **settings).latents[:, 0]
    report(f"sit {size} Euler-Maruyama", out - expected, expected, TRAJECTORY_TOLERANCE)
