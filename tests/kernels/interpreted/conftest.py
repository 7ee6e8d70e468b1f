"""Triton's interpreter is chosen when triton is first imported, for good: the bodies of these tests run in another process.

pytest collects them here, as it does all others: each has its id, its marks and its line in the report. The body runs in a
child (``TRITON_INTERPRET=1 pytest`` with the ids that were selected), which sends the outcome of every test back. By hand,
in one process: ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdit_kernels.dispatch import interpreting

HERE = Path(__file__).parent
OUTCOMES = "MMDIT_TEST_OUTCOMES"  # in a child's environment: the file descriptor it writes outcomes to

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
elif interpreting():
    import triton.language as tl
    from triton.runtime import interpreter

    patch_language: Callable[..., object] = interpreter._patch_lang

    def patch_language_once(function: Any) -> object:
        """Skip what has been done: the interpreter patches the language again at every call of a device function."""
        modules = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        return patch_language(function) if any(tl.core.is_builtin(module.load) for module in modules) else None

    interpreter._patch_lang = patch_language_once


class Child:
    """A pytest that runs tests in the interpreter, in the order of ``ids``."""

    def __init__(self, ids: list[str], root: Path) -> None:
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("MMDIT_KERNELS", None)
        reader, writer = os.pipe()
        self._printed = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the child)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *ids],
            env=environment | {OUTCOMES: str(writer)},
            cwd=root,
            pass_fds=[writer],
            stdout=self._printed,
            stderr=subprocess.STDOUT,
        )
        os.close(writer)
        self._outcomes = os.fdopen(reader)

    def outcome(self, test: str) -> tuple[str, str]:
        """Wait for the outcome of one test: "passed", "failed" or "skipped", and why."""
        outcome, text = "passed", ""
        for line in self._outcomes:
            found = json.loads(line)
            if found["test"] != test:
                continue  # selected here and stopped before its body: by a skip
            if found["outcome"] != "passed":
                outcome, text = found["outcome"], text + found["text"]
            if found["when"] == "teardown":
                return outcome, text
        self._process.wait()
        self._printed.seek(0)
        return "failed", f"the interpreter's process ended without this test's outcome:\n{self._printed.read()[-6000:]}"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._outcomes.close()
        self._printed.close()


CHILD = pytest.StashKey[Child]()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the child: send the outcome of a test's setup, call or teardown."""
    if interpreting() and OUTCOMES in os.environ:
        found = {"test": report.nodeid, "when": report.when, "outcome": report.outcome, "text": report.longreprtext}
        os.write(int(os.environ[OUTCOMES]), json.dumps(found).encode() + b"\n")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Take a test's outcome from the child instead of calling it here."""
    if interpreting() or not pyfuncitem.path.is_relative_to(HERE):
        return None
    session, stash = pyfuncitem.session, pyfuncitem.config.stash
    if CHILD not in stash:
        ids = [item.nodeid for item in session.items if item.path.is_relative_to(HERE)]
        stash[CHILD] = Child(ids[ids.index(pyfuncitem.nodeid) :], session.config.rootpath)
    outcome, text = stash[CHILD].outcome(pyfuncitem.nodeid)
    if outcome == "failed":
        pytest.fail(text, pytrace=False)
    if outcome == "skipped":
        pytest.skip(text)
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    if CHILD in config.stash:
        config.stash[CHILD].close()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every new tensor with NaN, so that an element no kernel writes is seen."""
    if not interpreting():
        yield  # the body runs in the child
        return
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy on log2(0) and 1 / 0, which the kernels mask
        yield
    torch.use_deterministic_algorithms(False)
