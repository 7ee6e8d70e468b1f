"""Facts about the project that nothing else would notice."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
SOURCES = sorted(path for folder in ("mmdit", "kernels") for path in (ROOT / folder).rglob("*.py"))


def _calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles(path):
    """A pickle runs code: torch.load only with weights_only=True, numpy only without pickles, no pickle module at all."""
    for function, keywords in _calls(path):
        assert not re.match(r"(pickle|dill|joblib|cloudpickle|shelve|marshal)\.loads?$", function), function
        if function.endswith("torch.load"):
            assert keywords.get("weights_only") == "True", f"{function} without weights_only=True"
        if function in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False"


def test_no_utils_module():
    assert not [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_installed_version_is_the_projects():
    try:
        installed = importlib.metadata.version("multimodal-dit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    import mmdit

    assert installed == PROJECT["version"] == mmdit.__version__


def test_extras():
    extras = PROJECT["optional-dependencies"]
    assert {"scenes", "metrics", "ui", "dev"} <= extras.keys()
    assert any(re.match(r"multimodal-dit\[.*scenes.*\]", requirement) for requirement in extras["dev"])


def test_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_ci_runs_the_readmes_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text(encoding="utf-8")
    assert "README.md" in text
    assert "rm -rf" in text


def test_ci_runs_what_the_readmes_command_leaves_out():
    options = SETTINGS["tool"]["pytest"]["ini_options"]["addopts"]
    left_out = re.findall(r"not (\w+)", options)
    assert left_out == ["notebook", "browser"]
    assert f"pytest -m '{' or '.join(left_out)}'" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_example_scenes_are_small_and_whole():
    from mmdit.cli.demo import EXAMPLES
    from mmdit.data.check import check_dataset

    report = check_dataset(EXAMPLES)
    assert report.problems == ()
    assert report.num_samples == {"test": 10}
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 1_000_000
    categories = {
        json.loads(line)["category"] for line in (EXAMPLES / "test" / "manifest.jsonl").read_text().splitlines()
    }
    assert len(categories) == 10


def test_bundled_reports_name_no_path_of_a_machine():
    absolute = re.compile(r': "(/[^"]*/|[A-Z]:\\)')
    reports = (ROOT / "mmdit" / "assets").glob("*/*.json")
    assert not [path for path in reports if absolute.search(path.read_text(encoding="utf-8"))]


def test_bundled_weights_are_small_and_readable():
    assets = ROOT / "mmdit" / "assets"
    files = [path for path in assets.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files), "weights must be readable by everybody"
