"""Triton's interpreter is chosen when triton is first imported, for good: the bodies of these tests run in another process.

pytest collects them here, as it does all others: each has its id, its marks and its line in the report. The bodies run in a
child (``TRITON_INTERPRET=1 pytest`` with the ids that were selected), which sends each outcome back. In a run of one process it
begins with all of them at once, beside the tests that come before them; with xdist each worker's child runs the files that this
worker was given, and no other. By hand, in one process: ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdit_kernels.dispatch import interpreting
from mmdit_kernels.testing import patch_language_once

HERE = Path(__file__).parent
OUTCOMES = "MMDIT_TEST_OUTCOMES"  # in a child's environment: the file that it writes outcomes to
REQUESTS = "MMDIT_TEST_REQUESTS"  # and the pipe that it reads lists of ids from

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
elif interpreting():
    patch_language_once()


class Child:
    """A pytest that has collected ``ids``, and runs those that it is asked for in the interpreter."""

    def __init__(self, ids: list[str], root: Path) -> None:
        self._ids, self._asked = ids, set[str]()
        self._found: dict[str, dict[str, Any]] = {}
        self._folder = tempfile.TemporaryDirectory()
        outcomes, printed = (Path(self._folder.name, name) for name in ("outcomes", "printed"))
        outcomes.touch()
        self._outcomes, self._printed = outcomes.open(), printed
        reads, writes = os.pipe()
        self._requests = os.fdopen(writes, "w", buffering=1)
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        environment |= {OUTCOMES: str(outcomes), REQUESTS: str(reads)}
        environment.pop("MMDIT_KERNELS", None)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *ids]
        with printed.open("w") as output:
            self._process = subprocess.Popen(
                command, env=environment, cwd=root, stdout=output, stderr=subprocess.STDOUT, pass_fds=[reads]
            )
        os.close(reads)

    def ask(self, ids: list[str]) -> None:
        """Let it run these next."""
        self._asked |= set(ids)
        with contextlib.suppress(BrokenPipeError):  # it has ended: `outcome` says so
            self._requests.write(json.dumps(ids) + "\n")

    def _lines(self) -> Iterator[str]:
        """Lines of the outcomes, as they are written, until the child has ended."""
        line = ""
        while True:
            ended = self._process.poll() is not None  # asked first: what the child wrote last is read still
            line += self._outcomes.readline()
            if line.endswith("\n"):
                yield line
                line = ""
            elif ended:
                return
            else:
                time.sleep(0.02)

    def outcome(self, test: str) -> dict[str, Any]:
        """Wait for the end of one test: its outcome ("passed", "failed" or "skipped"), why, and its duration in seconds.

        One that was not asked for is asked for now, with all of its file.
        """
        if test not in self._asked:
            file = test.partition("::")[0]
            self.ask([each for each in self._ids if each.partition("::")[0] == file])
        if test not in self._found:
            for line in self._lines():
                found = json.loads(line)
                self._found[found["test"]] = found
                if found["test"] == test:
                    break
            else:
                printed = self._printed.read_text(errors="replace")[-6000:]
                text = f"the interpreter's process ended without this test's outcome:\n{printed}"
                return {"outcome": "failed", "text": text, "duration": 0.0}
        return self._found[test]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._outcomes.close()
        self._folder.cleanup()


CHILD = pytest.StashKey[Child]()
SECONDS = pytest.StashKey[float]()


IDS = pytest.StashKey[list[str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    ids = [item.nodeid for item in session.items if item.path.is_relative_to(HERE)]
    if not ids or interpreting() or session.config.option.collectonly:
        return
    session.config.stash[IDS] = ids
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker can't know yet which of them it gets
        _child(session.config).ask(ids)


def _child(config: pytest.Config) -> Child:
    if CHILD not in config.stash:
        config.stash[CHILD] = Child(config.stash[IDS], config.rootpath)
    return config.stash[CHILD]


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """In the child: run what is asked for, until the process that asks closes the pipe or has ended."""
    if not interpreting() or REQUESTS not in os.environ:
        return None
    items = {item.nodeid: item for item in session.items}
    with os.fdopen(int(os.environ[REQUESTS])) as requests:
        for line in requests:
            asked = [items[test] for test in json.loads(line)]
            for item, following in zip(asked, [*asked[1:], None], strict=True):
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return True


def pytest_unconfigure(config: pytest.Config) -> None:
    if CHILD in config.stash:
        config.stash[CHILD].close()


REPORTS: list[pytest.TestReport] = []  # in the child: setup, call and teardown of the test that runs


def _reason(report: pytest.TestReport) -> str:
    return (
        report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    )  # a skip's file, line, reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the child: write a line when a test has been torn down."""
    if not interpreting() or OUTCOMES not in os.environ:
        return
    REPORTS.append(report)
    if report.when != "teardown":
        return
    bad = [found for found in REPORTS if found.failed] or [found for found in REPORTS if found.skipped]
    found = {
        "test": report.nodeid,
        "outcome": bad[0].outcome if bad else "passed",
        "text": "\n".join(_reason(each) for each in bad),
        "duration": sum(each.duration for each in REPORTS),
    }
    REPORTS.clear()
    with open(os.environ[OUTCOMES], "a") as file:
        file.write(json.dumps(found) + "\n")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Take a test's outcome from the child instead of calling it here."""
    config = pyfuncitem.config
    if IDS not in config.stash or not pyfuncitem.path.is_relative_to(HERE):
        return None
    found = _child(config).outcome(pyfuncitem.nodeid)
    pyfuncitem.stash[SECONDS] = found["duration"]
    if found["outcome"] == "failed":
        pytest.fail(found["text"], pytrace=False)
    if found["outcome"] == "skipped":
        pytest.skip(found["text"])
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Report the time that a body took in the child, not that of waiting for it."""
    report = yield
    if call.when == "call" and SECONDS in item.stash:
        report.duration = item.stash[SECONDS]
    return report


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
