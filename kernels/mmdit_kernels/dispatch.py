"""Which implementation runs: Triton where the device and the arguments allow it, else PyTorch."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import TypeVar

import torch

BACKENDS = ("auto", "triton", "torch")
ENVIRONMENT_VARIABLE = "MMDIT_KERNELS"
TRITON_MINIMUM = (3, 5)
# Bytes that an A100 gives a block, which the tiles of attention are chosen for; GPUs for displays have 99 KiB.
ATTENTION_SHARED_MEMORY = 163 * 1024

F = TypeVar("F", bound=Callable[..., object])


def constant_in_graphs(function: F) -> F:
    """Let torch.compile call ``function`` while tracing and keep its result.

    What torch.compiler.assume_constant_result does, without its import of the whole compiler (seconds).
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def default_backend() -> str:
    """Return the backend that "auto" callers get: ``MMDIT_KERNELS``, or "auto"; ValueError for an unknown value."""
    value = os.environ.get(ENVIRONMENT_VARIABLE, "auto") or "auto"
    if value not in BACKENDS:
        raise ValueError(f"{ENVIRONMENT_VARIABLE}={value!r} in the environment: must be one of {', '.join(BACKENDS)}")
    return value


@constant_in_graphs
def interpreting() -> bool:
    """Return whether Triton's interpreter runs the kernels (``TRITON_INTERPRET=1``), which it does on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def triton_version() -> str | None:
    """Return the version of the installed triton, or None; does not import it."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "0"


@functools.cache
def _device_problem(device_type: str, index: int | None, interpret: bool) -> str | None:
    version = triton_version()
    if version is None:
        return "triton is not installed"
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < TRITON_MINIMUM:
        return f"triton {version} is older than {'.'.join(map(str, TRITON_MINIMUM))}"
    if interpret:
        return None
    if device_type != "cuda":
        return f"the tensors are on {device_type!r}, and the Triton kernels need a CUDA or ROCm device"
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < (8, 0):
        major, minor = torch.cuda.get_device_capability(index)
        return f"the GPU has compute capability {major}.{minor}, and the Triton kernels need 8.0 or newer"
    return None


@constant_in_graphs
def device_problem(device_type: str, index: int | None = None) -> str | None:
    """Return why the Triton kernels cannot run on a device, or None when they can."""
    return _device_problem(device_type, index, interpreting())


@constant_in_graphs
def shared_memory_problem(device_type: str, index: int | None, needed: int) -> str | None:
    """Return why tiles that take ``needed`` bytes of shared memory cannot run on a device, or None when they can."""
    if device_type != "cuda" or torch.version.hip is not None:  # tiles for AMD fit them all
        return None
    available = torch.cuda.get_device_properties(index).shared_memory_per_block_optin  # type: ignore[attr-defined]
    if available >= needed:
        return None
    return f"the GPU has {available >> 10} KiB of shared memory for a block, and the tiles need {needed >> 10}"


def transforms() -> list[str]:
    """Return the transforms of torch.func that are open, the innermost last: "grad" (vjp and jacrev too), "jvp", "vmap"."""
    return [str(layer.key()).rpartition(".")[2].lower() for layer in torch._C._functorch.get_interpreter_stack() or ()]


@constant_in_graphs
def transform_problem() -> str | None:
    """Return why the Triton kernels cannot run inside the transforms of torch.func that are open, or None when they can."""
    if "grad" not in transforms():
        return None
    return "torch.func.grad, vjp and jacrev do not see through operators of torch.library, as torch.autograd does"


def use_triton(op: str, backend: str, device: torch.device, find_problem: Callable[[], str | None]) -> bool:
    """Decide for one call. ``find_problem`` returns why the kernel does not take these arguments, or None.

    Raises ValueError for an unknown backend, and for "triton" where it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r} of {op}: it must be one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = default_backend()
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return False
    problem = device_problem(device.type, device.index) or transform_problem() or find_problem()
    if problem is not None and backend == "triton":
        raise ValueError(f"{op} cannot run on the Triton backend: {problem}; use backend='auto' or 'torch'")
    return problem is None


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Make the tensor's GPU the current one, where triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def status() -> dict[str, str]:
    """Return what an issue report needs: backend, version, and for each operator what runs here and why."""
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    backend = default_backend()
    problem = "the default backend is 'torch'" if backend == "torch" else device_problem(device_type)
    if problem is None and device_type == "cpu" and backend == "auto":
        problem = "the default backend is 'auto', which takes PyTorch on the CPU"
    attention = problem or shared_memory_problem(device_type, None, ATTENTION_SHARED_MEMORY)
    problems = {"attention": attention, "attention_packed": attention}
    problems |= {"layernorm_modulate": problem, "gated_residual_layernorm_modulate": problem}
    return {
        "default_backend": backend,
        "triton": triton_version() or "not installed",
        "interpreter": "on" if interpreting() else "off",
        "device": torch.cuda.get_device_name() if device_type == "cuda" else "cpu",
        **{op: "triton" if reason is None else f"torch ({reason})" for op, reason in problems.items()},
    }
