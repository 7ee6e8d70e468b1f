"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmdit"
# level 0: what every area may import
BASE = frozenset(
    {
        "mmdit.errors",
        "mmdit.bounds",
        "mmdit.names",
        "mmdit.colours",
        "mmdit.hub",
        "mmdit.progress",
        "mmdit.storage",
        "mmdit.task",
        "mmdit.conditioning",
        "mmdit.prompt",
    }
)


def _areas(*names: str) -> set[str]:
    return {f"mmdit.{name}" for name in names}


# area -> what it may import besides itself, BASE, and other people's packages
ALLOWED = {
    "mmdit.errors": set(),
    "mmdit.bounds": _areas("errors"),
    "mmdit.names": set(),
    "mmdit.hub": _areas("errors"),
    "mmdit.colours": set(),
    "mmdit.progress": set(),
    "mmdit.storage": _areas("errors"),
    "mmdit.task": _areas("errors"),
    "mmdit.conditioning": _areas("errors"),
    "mmdit.prompt": _areas("errors"),
    "mmdit.modalities": set(),
    "mmdit.geometry": _areas("modalities"),
    "mmdit.video": _areas("modalities"),
    "mmdit.flow": set(),
    "mmdit.models": set(),
    "mmdit.launch": set(),
    "mmdit.data": _areas("modalities"),
    "mmdit.encoders": _areas("data", "modalities"),
    "mmdit.sources": _areas("data", "modalities", "encoders", "launch"),
    "mmdit.pipelines": _areas("encoders", "models", "flow", "modalities"),
    "mmdit.metrics": _areas("pipelines", "encoders", "data", "geometry", "modalities"),
    "mmdit.apps": _areas("pipelines", "metrics", "geometry", "modalities"),
    "mmdit.training": _areas(
        "metrics", "pipelines", "sources", "encoders", "data", "launch", "models", "flow", "modalities"
    ),
    "mmdit.bench": _areas("training", "pipelines", "encoders", "data", "models", "flow", "modalities"),
    "mmdit.cli": _areas(
        "bench",
        "training",
        "apps",
        "metrics",
        "pipelines",
        "sources",
        "encoders",
        "data",
        "launch",
        "models",
        "flow",
        "geometry",
        "video",
        "modalities",
    ),
}
KERNELS_IMPORTER = "mmdit.models.layers"
LIGHTNING_IMPORTERS = (
    "mmdit.training",
    "mmdit.bench",
    "mmdit.launch",
    "mmdit.data.datamodule",
    "mmdit.sources.passes",
)


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside functions, but for type checking only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(module: str, area: str) -> bool:
    return module == area or module.startswith(area + ".")


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "assets" not in path.parents]


def test_every_area_has_a_rule():
    areas = {".".join(_module_name(path, ROOT).split(".")[:2]) for path in SOURCES} - {"mmdit", "mmdit.__main__"}
    assert areas <= ALLOWED.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_direction(path):
    module = _module_name(path, ROOT)
    if module in ("mmdit", "mmdit.__main__"):
        pytest.skip("the package itself only points to its parts")
    area = ".".join(module.split(".")[:2])
    allowed = ALLOWED[area] | {area} | (set() if area in BASE else BASE)
    for name in _imports(path):
        if _within(name, "mmdit_kernels"):
            assert module in (KERNELS_IMPORTER, "mmdit.cli.env"), f"{module} imports {name}"
        if _within(name, "lightning") or _within(name, "pytorch_lightning"):
            assert any(_within(module, place) for place in LIGHTNING_IMPORTERS), f"{module} imports {name}"
        if name == "triton" or name.startswith("triton."):
            pytest.fail(f"{module} imports {name}: kernels are in mmdit_kernels")
        if name == "mmdit" or name == "mmdit.__init__":
            pytest.fail(f"{module} imports the package itself: import the module that has the name")
        # "from mmdit import data" shows up as mmdit.data; a name inside a module as module.name
        if _within(name, "mmdit"):
            assert any(_within(name, place) for place in allowed), f"{module} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_never_import_mmdit(path):
    if "benchmarks" in path.parts:
        pytest.skip("benchmarks compare with the model")
    assert not [name for name in _imports(path) if _within(name, "mmdit")]


def _python(code: str, *arguments: str) -> str:
    prefix = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", prefix + textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_pipeline_runs_without_lightning_triton_and_peft(tiny_pipeline_dir):
    code = """
        import importlib.abc, importlib.machinery

        class Absent(importlib.abc.MetaPathFinder):
            blocked = ("lightning", "pytorch_lightning", "lightning_fabric", "triton", "mitsuba", "trimesh")
            blocked += ("torchmetrics", "peft")

            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in self.blocked:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
                return None

        import importlib.util

        found = importlib.util.find_spec  # which libraries ask whether a package is there
        importlib.util.find_spec = lambda name, *package: (
            None if name.split(".")[0] in Absent.blocked else found(name, *package)
        )
        sys.meta_path.insert(0, Absent())
        import torch
        from mmdit import MultimodalDiTPipeline

        pipe = MultimodalDiTPipeline.from_pretrained(sys.argv[1])
        pipe.set_progress_bar_config(disable=True)
        out = pipe(class_labels="torus", num_inference_steps=1, generator=torch.Generator().manual_seed(0))
        out = pipe(conditions={"rgb": out.rgb[0]}, num_inference_steps=1)
        print(out.depth.shape, sorted({"lightning", "triton", "peft"} & set(sys.modules)))
        try:
            pipe.load_lora_weights("any")
        except ValueError as error:
            print(type(error).__name__, error)
    """
    lines = _python(code, str(tiny_pipeline_dir)).splitlines()
    assert lines[0] == "(1, 64, 64) []"
    assert lines[1] == "UserError LoRA needs the package peft: pip install 'multimodal-dit[lora]'"
