"""Configurations, damaged in thousands of ways: parsed, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
import yaml
from fuzzing import EXAMPLES, SEEDED, changed_json, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit.cli.common.parsing import build_parser
from mmdit.cli.common.plain_values import check_config_file, check_options
from mmdit.cli.main import COMMANDS
from mmdit.errors import UserError

ROOT = Path(__file__).parents[3]
TEXTS = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
VALUES = [yaml.safe_load(text) for text in TEXTS]
SECTIONS = build_parser(COMMANDS["train"].load(), "mmdit train", config=True).sections


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed") / "run.yaml"


def _written(values: object) -> bytes:
    return yaml.safe_dump(values).encode("utf-8", "surrogatepass")


CONTENTS = damaged(TEXTS) | changed_json(VALUES).map(_written)


@SEEDED
@given(content=CONTENTS)
def test_files_are_checked(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        check_config_file(path, SECTIONS)
    except UserError as error:
        assert "\n" not in str(error)
        assert "run.yaml" in str(error)


@settings(SEEDED, max_examples=max(20, EXAMPLES // 10))
@given(content=CONTENTS)
def test_files_are_parsed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    parser = build_parser(COMMANDS["train"].load(), "mmdit train", config=True)
    try:
        values = parser.parse_args(["--config", str(path), "--output", "o"])
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(values.seed, int)


WORDS = ["{a: b}", "{", "null", "[", "*a", "&a x", "--model.class_path", "--ema=", "--=", "--", "payload.X"]


@SEEDED
@given(st.lists(st.sampled_from([f"--{name}" for name in SECTIONS]) | st.text(max_size=12) | st.sampled_from(WORDS)))
def test_options_are_checked(words: list[str]) -> None:
    try:
        check_options(words, SECTIONS)
    except UserError as error:
        assert str(error)
