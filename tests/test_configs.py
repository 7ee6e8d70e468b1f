"""Every configuration that is shipped is one that the command takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdit.cli.main import COMMANDS
from mmdit.cli.parsing import build_parser

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def test_there_are_configurations():
    assert {"debug.yaml", "scenes64.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_parses(path):
    command = COMMANDS["train"]
    parser = build_parser(command.load(), "mmdit train", command.positional, command.config)
    values = parser.instantiate(parser.parse_args(["--config", str(path)]))
    assert values.output is not None
    assert values.trainer.max_steps >= 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configuration_says_what_it_is_for(path):
    assert path.read_text(encoding="utf-8").startswith("#")
