"""diffusers' own testers, mixins of its repository's tests, which no wheel has: from a checkout, MMDIT_DIFFUSERS_CHECKOUT."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

VARIABLE = "MMDIT_DIFFUSERS_CHECKOUT"  # of github.com/huggingface/diffusers, 0.40 or newer
_PACKAGE = "diffusers_checkout_tests"


def marks() -> list[str]:
    """Names of the marks on the checkout's testers, which pytest is to know; none without a checkout."""
    folder = Path(os.environ.get(VARIABLE, "/nowhere")) / "tests"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("**/testing_utils*/*.py"))]
    texts += [path.read_text(encoding="utf-8") for path in sorted(folder.glob("testing_utils.py"))]
    return sorted(set(re.findall(r"pytest\.mark\.(\w+)", "".join(texts))))


def of_diffusers(name: str) -> ModuleType:
    """The module ``tests.<name>`` of the checkout; without one the calling module is skipped."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} names no checkout of github.com/huggingface/diffusers", allow_module_level=True)
    pytest.importorskip("parameterized", reason="diffusers' testers need parameterized")
    if _PACKAGE not in sys.modules:
        folder = Path(os.environ[VARIABLE]) / "tests"
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_PACKAGE])
    return importlib.import_module(f"{_PACKAGE}.{name}")


class ButFor:
    """``exceptions``: tests of a class that are not to pass -> why; one that passes after all is an error."""

    exceptions: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(autouse=True)
    def expect_exceptions(self, request: pytest.FixtureRequest) -> None:
        reason = self.exceptions.get(request.node.originalname)
        if reason is not None:
            request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
