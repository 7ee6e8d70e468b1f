"""Which backend runs, what is refused and in what words; nothing here needs a GPU or triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmdit_kernels
import pytest
import torch
from mmdit_kernels import (
    attention,
    attention_packed,
    gated_residual_layernorm_modulate,
    layernorm_modulate,
    testing,
)
from mmdit_kernels.adaln.registration import find_problem as adaln_problem
from mmdit_kernels.attention.registration import find_problem as attention_problem
from mmdit_kernels.dispatch import ATTENTION_SHARED_MEMORY, interpreting, shared_memory_problem, transform_problem

Q = torch.ones(2, 3, 5, 8)
X, C = torch.ones(2, 5, 6), torch.ones(2, 6)
TABLES = (torch.ones(5, 8), torch.ones(5, 8))


def calls(**options: Any) -> list[Any]:
    return [
        lambda: attention(Q, Q, Q, **options),
        lambda: attention_packed(torch.ones(2, 5, 3, 3, 8), **options),
        lambda: layernorm_modulate(X, C, C, **options),
        lambda: gated_residual_layernorm_modulate(X, X, C, C, C, **options),
    ]


def test_unknown_backend_is_refused() -> None:
    for call in calls(backend="cuda"):
        with pytest.raises(ValueError, match=r"unknown backend 'cuda'.*auto, triton, torch"):
            call()


@pytest.mark.skipif(interpreting(), reason="the interpreter runs on the CPU")
def test_triton_on_the_cpu_is_refused_and_says_why() -> None:
    for call in calls(backend="triton"):
        with pytest.raises(ValueError, match=r"cannot run on the Triton backend: .*use backend='auto' or 'torch'"):
            call()


@pytest.mark.skipif(interpreting(), reason="the interpreter runs on the CPU")
def test_the_environment_sets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDIT_KERNELS", "triton")
    for call in calls():
        with pytest.raises(ValueError, match="Triton"):
            call()
    monkeypatch.setenv("MMDIT_KERNELS", "torch")
    for call in calls():
        call()
    assert mmdit_kernels.status()["attention"] == "torch (the default backend is 'torch')"
    monkeypatch.setenv("MMDIT_KERNELS", "fast")
    for call in calls():
        with pytest.raises(ValueError, match=r"MMDIT_KERNELS='fast'.*auto, triton, torch"):
            call()


def test_status_names_every_operator() -> None:
    status = mmdit_kernels.status()
    assert set(mmdit_kernels.__all__) - {"status"} <= set(status)
    assert all(isinstance(value, str) and value for value in status.values())
    if not torch.cuda.is_available() and not interpreting():
        assert status["attention"].startswith("torch (")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Q[0], Q, Q), {}, r"q \(B, H, N, d\)"),
        ((Q, Q, Q[:, :, :4]), {}, r"v \(2, 3, 4, 8\)"),
        ((Q, Q[:, :2], Q[:, :2]), {}, "agree in B, H and d"),
        ((Q, Q.half(), Q), {}, "one floating dtype"),
        ((Q.int(), Q.int(), Q.int()), {}, "one floating dtype"),
        ((Q, Q, Q), {"q_weight": torch.ones(7)}, r"q_weight of .* floating with the shape \(d,\) = \(8,\)"),
        ((Q, Q, Q), {"k_weight": torch.ones(8).long()}, r"k_weight of attention must be floating.*got torch.int64"),
        ((Q, Q, Q), {"k_weight": torch.ones(1, 8)}, "k_weight"),
        ((Q, Q[:, :, :4], Q[:, :, :4]), {"rope": TABLES}, "as many queries as keys; got 5 queries and 4 keys"),
        ((Q, Q, Q), {"rope": (TABLES[0], torch.ones(5, 4))}, r"sin of rope .* shape \(5, 8\) or \(2, 5, 8\)"),
        ((Q, Q, Q), {"rope": TABLES[:1]}, r"a pair of tables \(cos, sin\); got 1 tables"),
        ((Q, Q, Q), {"rope": torch.ones(2, 5, 8)}, r"a pair of tables \(cos, sin\); got a Tensor"),
        ((Q, Q, Q), {"rope": (TABLES[0].to(torch.complex64),) * 2}, "cos of rope must be floating.*complex64"),
        ((Q[..., :3], Q[..., :3], Q[..., :3]), {"rope": (torch.ones(5, 3),) * 2}, "must be even"),
        ((Q, Q, Q), {"key_mask": torch.ones(2, 5)}, "key_mask of attention must be bool"),
        ((Q, Q, Q), {"key_mask": torch.ones(5, 2, dtype=torch.bool)}, r"shape \(2, 5\)"),
    ],
)
def test_attention_refuses_what_does_not_fit(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(*arguments, **options)


@pytest.mark.parametrize("shape", [(2, 5, 9, 8), (2, 5, 2, 3, 8)])
def test_packed_attention_refuses_what_is_not_packed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attention_packed needs qkv \(B, N, 3, H, d\); got \(2, 5, "):
        attention_packed(torch.ones(shape))


def test_packed_attention_on_pytorch_has_the_bits_of_the_views() -> None:
    qkv = torch.randn(2, 5, 3, 3, 8)
    assert torch.equal(attention_packed(qkv, rope=TABLES), attention(*qkv.permute(2, 0, 3, 1, 4), rope=TABLES))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layernorm_modulate(X[0], C, C), r"x of layernorm_modulate must be floating \(B, T, D\)"),
        (lambda: layernorm_modulate(X.int(), C, C), "torch.int32"),
        (lambda: layernorm_modulate(X, C[:1], C), r"shift of .* must be floating \(B, D\) = \(2, 6\)"),
        (lambda: layernorm_modulate(X, C, X), "scale of"),
        (lambda: gated_residual_layernorm_modulate(X, X[:, :3], C, C, C), r"the shape of x, \(2, 5, 6\)"),
        (lambda: gated_residual_layernorm_modulate(X, X.int(), C, C, C), "y of .* must be floating.*torch.int32"),
        (lambda: layernorm_modulate(X, C, C, out_dtype=torch.int32), "out_dtype of .* floating dtype; got torch.int32"),
        (lambda: gated_residual_layernorm_modulate(X, X, C.long(), C, C), "gate of"),
    ],
)
def test_adaln_refuses_what_does_not_fit(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_attention_kernels_say_what_they_do_not_take() -> None:
    def problem(q: torch.Tensor, **options: Any) -> str | None:
        return attention_problem(q, q, q, **options)

    assert problem(Q) is None
    assert problem(Q.bfloat16(), rope=TABLES, scale=0.5) is None
    assert "float64" in str(problem(Q.double()))
    assert "head dimension 20" in str(problem(torch.ones(1, 1, 1, 20)))
    assert "head dimension 136" in str(problem(torch.ones(1, 1, 1, 136)))
    assert "scale -1" in str(problem(Q, scale=-1.0))
    assert "a size is zero" in str(problem(Q[:0]))
    far_apart = torch.empty(1, device="meta").as_strided((1, 1, 2, 8), (1, 1, 2**23, 1))
    assert "stride" in str(problem(far_apart))
    assert "different devices" in str(attention_problem(Q, Q.to("meta"), Q))
    assert "different devices" in str(problem(Q, k_weight=torch.ones(8, device="meta")))


def test_a_gpu_with_too_little_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts of a GPU that is not here: 99 KiB, as on sm_89."""
    problems = []
    for available in (101_376, testing.SHARED_MEMORY["sm_80"], testing.SHARED_MEMORY["sm_90"]):
        facts = SimpleNamespace(shared_memory_per_block_optin=available)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, facts=facts: facts)
        problems.append(shared_memory_problem("cuda", 0, ATTENTION_SHARED_MEMORY))
    assert problems == ["the GPU has 99 KiB of shared memory for a block, and the tiles need 163", None, None]
    assert shared_memory_problem("cpu", None, ATTENTION_SHARED_MEMORY) is None


def test_adaln_kernels_say_what_they_do_not_take() -> None:
    assert adaln_problem(X, C, C) is None
    assert "float64" in str(adaln_problem(X, C.double()))
    assert "out_dtype torch.float64" in str(adaln_problem(X, C, C, out_dtype=torch.float64))
    assert "width 8193" in str(adaln_problem(torch.ones(1, 1, 8193)))
    assert "a size is zero" in str(adaln_problem(X[:, :0], C))
    assert "different devices" in str(adaln_problem(X, C.to("meta")))


def test_import_is_light_and_works_without_triton(tmp_path: Path) -> None:
    """One process in which nothing can import triton: every operator runs, forward and backward, and says why."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import sys
from importlib.machinery import PathFinder
import torch

class WithoutTriton(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "triton" else super().find_spec(name, path, target)

for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
    del sys.modules[name]
sys.meta_path[:] = [WithoutTriton if finder is PathFinder else finder for finder in sys.meta_path]
try:
    import triton
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("triton is not hidden")

import mmdit_kernels as kernels

assert "torch._dynamo" not in sys.modules
q, x, c = (torch.ones(shape, requires_grad=True) for shape in ((1, 1, 2, 8), (1, 2, 8), (1, 8)))
assert torch.equal(kernels.attention(q, q, q), q)
kernels.attention(q, q, q).sum().backward()
h, out = kernels.gated_residual_layernorm_modulate(x, kernels.layernorm_modulate(x, c, c), c, c, c)
(h + out).sum().backward()
assert all(tensor.grad is not None for tensor in (q, x, c))
assert kernels.status()["triton"] == "not installed", kernels.status()
for call in (lambda: kernels.attention(q, q, q, backend="triton"), lambda: kernels.layernorm_modulate(x, c, c, backend="triton")):
    try:
        call()
    except ValueError as error:
        assert "triton is not installed" in str(error)
    else:
        raise AssertionError("the Triton backend ran without triton")
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mmdit_kernels.__file__).parents[1])}
    environment.pop("MMDIT_KERNELS", None)
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_transforms_of_torch_func_that_the_kernels_do_not_have_are_seen() -> None:
    """grad, vjp and jacrev at any depth; "auto" takes PyTorch there, "triton" says why not."""
    seen: list[str | None] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(transform_problem())
        return x.sum()

    func = torch.func
    for transform in (func.grad, func.jacrev, lambda f: func.vmap(func.grad(f)), lambda f: func.grad(lambda x: f(x))):
        transform(function)(X)
    func.jvp(func.grad(function), (X,), (X,))
    assert all("torch.func.grad" in str(problem) for problem in seen)
    seen.clear()
    func.vmap(function)(X)
    func.jvp(function, (X,), (X,))
    assert [*seen, transform_problem()] == [None] * 3
