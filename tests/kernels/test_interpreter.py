"""Runs ``interpreted/`` in a process of its own: the interpreter is chosen when triton is first imported, for good."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmdit_kernels.dispatch import interpreting

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(1800)  # all of them, perhaps on a busy machine
@pytest.mark.skipif(interpreting(), reason="already in the interpreter: the tests are collected directly")
def test_the_kernels_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("MMDIT_KERNELS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "--tb=short"]
    done = subprocess.run(
        [*command, str(HERE / "interpreted")], env=environment, cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
