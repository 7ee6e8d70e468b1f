"""File names that are not UTF-8 in every kind of option, under any locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from mmdit.cli.common.parsing import build_parser
from mmdit.cli.common.raw_names import hide_bytes, show_bytes

NAME = os.fsdecode(b"caf\xe9\xff.png")


def _command(one: Path, more: list[Path], maybe: Path | None = None, text: str = "x", names: list[str] | None = None):
    """Take paths.

    Args:
        one: A path.
        more: Paths.
        maybe: A path, or none.
        text: Text.
        names: Texts.
    """


def test_every_kind_of_option_gets_the_name_as_it_was_given():
    parser = build_parser(_command, "mmdit x")
    args = ["--one", NAME, "--more", f"[{NAME},b]", f"--maybe={NAME}", "--text", NAME, "--names", f"[{NAME}]"]
    values = parser.instantiate(parser.parse_args(args))
    assert values.one == values.maybe == Path(NAME)
    assert values.more == [Path(NAME), Path("b")]
    assert values.text == NAME
    assert values.names == [NAME]


def test_what_is_hidden_comes_back():
    hidden = hide_bytes(["--a", NAME, "--config", NAME, f"--config={NAME}"])
    hidden[1].encode()  # is text
    assert hidden[2:] == ["--config", NAME, f"--config={NAME}"]
    nested = Namespace(a=[Path(hidden[1])], b={"c": (hidden[1], 1, None)})
    assert show_bytes(nested) == Namespace(a=[Path(NAME)], b={"c": (NAME, 1, None)})
    assert show_bytes("é名\U0001f600") == "é名\U0001f600"


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_dataset_of_any_name_is_checked_under_any_locale(tmp_path, locale):
    root = tmp_path / os.fsdecode(b"d\xe4ta") / "é"
    (root / "train").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "train" / NAME)
    Image.new("RGB", (4, 4)).save(root / "train/名.png")
    (root / "dataset.json").write_text('{"modalities": ["rgb"], "categories": ["名"]}', encoding="utf-8")
    rows = [{"id": "é", "category": "名", "rgb": "名.png"}, {"id": "x", "rgb": NAME}, {"id": "名", "rgb": "é.png"}]
    (root / "train/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | locale
    command = [sys.executable, "-m", "mmdit.cli.main", "data", "check", "--data", os.fsencode(root)]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 2, done
    assert len(done.stdout.splitlines()) == 1
    assert b"1 problem in 1 sample, listed above" in done.stderr
