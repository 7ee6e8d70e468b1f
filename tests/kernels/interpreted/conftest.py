"""These tests need the interpreter from the first import of triton on, so they run in a process of their own.

``tests/kernels/test_interpreter.py`` starts it; by hand: ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mmdit_kernels.dispatch import interpreting

if not interpreting():
    collect_ignore_glob = ["test_*.py"]
else:
    import triton.language as tl
    from triton.runtime import interpreter

    patch_language: Callable[..., object] = interpreter._patch_lang

    def patch_language_once(function: Any) -> object:
        """Skip what has been done: the interpreter patches the language again at every call of a device function."""
        modules = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        return patch_language(function) if any(tl.core.is_builtin(module.load) for module in modules) else None

    interpreter._patch_lang = patch_language_once


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every new tensor with NaN, so that an element no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy on log2(0) and 1 / 0, which the kernels mask
        yield
    torch.use_deterministic_algorithms(False)
