"""No code outside ``mmdit/modalities`` decides anything by a modality's or a codec's name: that is the codec's business."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmdit.modalities import CODECS, MODALITIES

PACKAGE = Path(__file__).resolve().parents[2] / "mmdit"
NAMES = {*MODALITIES, *CODECS}
CLASSES = {codec.__name__ for codec in CODECS.values()}
SEARCHES = {"index", "startswith", "endswith", "count", "remove", "find"}


def branches(tree: ast.AST) -> Iterator[ast.AST]:
    """Comparisons with a name, searches for one, cases that match one, and tests for a codec's class or its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            compares = any(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops)
            if compares and any(_names(side) or _is_codec_name(side) for side in sides):
                yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
            if any(_names(argument) for argument in node.args):
                yield node
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            if any(
                isinstance(part, ast.Name | ast.Attribute) and _last(part) in CLASSES for part in ast.walk(node.args[1])
            ):
                yield node
        elif isinstance(node, ast.MatchValue) and _names(node.value):
            yield node


def _names(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(_names(element) for element in node.elts)
    return isinstance(node, ast.Constant) and node.value in NAMES


def _is_codec_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "codec" and ast.unparse(node.value) != "self"


def _last(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "modalities" not in path.parents]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_branch_on_a_name(path):
    found = [f"line {node.lineno}: {ast.unparse(node)}" for node in branches(ast.parse(path.read_text("utf-8")))]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        'if name == "rgb": pass',
        'names = [n for n in all if n != "depth"]',
        'if modality.codec in ("normal", "depth"): pass',
        "if modality.codec == other: pass",
        'row = modalities.index("rgb")',
        'if task.startswith("rgb"): pass',
        "if isinstance(codec, DepthCodec): pass",
        "if isinstance(codec, (int, mmdit.modalities.depth.DepthCodec)): pass",
        'if "segmentation" in maps: pass',
        'match name:\n    case "depth": pass',
    ],
)
def test_branches_are_seen(code):
    assert list(branches(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ['options = {"rgb": rgb}', 'out = maps["depth"]', "if name == IMAGE: pass", "if a is None: pass"]
)
def test_names_alone_are_no_branches(code):
    assert not list(branches(ast.parse(code)))
