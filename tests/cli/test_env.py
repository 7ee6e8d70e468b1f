from __future__ import annotations

import sys

from mmdit.cli.env import PACKAGES
from mmdit.storage.versions import version_of


def test_env_says_what_an_issue_report_needs(mmdit, monkeypatch):
    monkeypatch.setenv("MMDIT_KERNELS", "torch")
    result = mmdit("env")
    assert result.code == 0
    assert result.err == ""
    for text in ("python:", "platform:", "cores", "torch built for:", "attention:", "MMDIT_KERNELS: torch"):
        assert text in result.out
    for package in PACKAGES:
        assert f"  {package}: " in result.out


def test_env_survives_broken_parts(mmdit, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmdit_kernels", None)  # importing it now fails
    monkeypatch.setenv("MMDIT_KERNELS", "nonsense")
    result = mmdit("env")
    assert result.code == 0
    assert "mmdit_kernels: not usable" in result.out


def test_env_reports_a_wrong_setting_of_the_kernels(mmdit, monkeypatch):
    monkeypatch.setenv("MMDIT_KERNELS", "nonsense")
    result = mmdit("env")
    assert result.code == 0
    assert "'nonsense'" in result.out


def test_version_of_a_package_that_is_not_there():
    assert version_of("no-such-distribution-of-ours") == "not installed"
    assert version_of("numpy")[0].isdigit()
