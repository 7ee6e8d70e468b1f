"""Options and YAML files are values: nothing they say imports, runs or reads anything else."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdit.cli.common.parsing import build_parser
from mmdit.cli.common.plain_values import check_config_file, check_options
from mmdit.cli.main import COMMANDS
from mmdit.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
TRAIN = build_parser(COMMANDS["train"].load(), "mmdit train", config=True).sections
PAYLOAD = "open('PWNED', 'w').write('code from data ran')\nclass X: pass\n"


def test_sections_are_found_by_type():
    assert set(TRAIN) == {
        "model", "autoencoder", "teacher", "data", "task", "objective", "alignment", "optimizer", "trainer", "ema", "preview",
        "clip", "decoder", "captioner", "detector", "image_encoder", "styles", "prompts", "lora", "routing", "frechet",
        "distillation",
    }  # fmt: skip
    assert {name for name, null in TRAIN.items() if null} == {
        "alignment",
        "distillation",
        "ema",
        "frechet",
        "lora",
        "prompts",
        "routing",
    }
    assert set(build_parser(COMMANDS["data label"].load(), "mmdit data label").sections) == {"marigold", "masks"}


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "payload.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(tmp_path)  # were it looked for, it would be found
    return tmp_path / "PWNED"


NAMING_CODE = (
    "{section}:\n  class_path: payload.X\n",
    "{section}: payload.X\n",
    "{section}.class_path: payload.X\n",
    "{section}: {{class_path: payload.X, init_args: {{}}}}\n",
    "{section}:\n  inner: [{{class_path: payload.X}}]\n",
    "{section}: payload.yaml\n",
)


@pytest.mark.parametrize("text", NAMING_CODE)
def test_no_section_of_a_configuration_names_code(payload, tmp_path, text):
    for section in TRAIN:
        (tmp_path / "run.yaml").write_text("output: run\n" + text.format(section=section))
        with pytest.raises(UserError, match=r"run\.yaml: .*(class_path|but a section)"):
            check_config_file(tmp_path / "run.yaml", TRAIN)
    assert not payload.exists()


@pytest.mark.parametrize(("section", "text"), zip(["model", "alignment", "ema"] * 2, NAMING_CODE, strict=True))
def test_a_configuration_that_names_code_is_one_line(mmdit, payload, tmp_path, section, text):
    (tmp_path / "payload.yaml").write_text("class_path: payload.X\n")
    (tmp_path / "run.yaml").write_text("output: run\n" + text.format(section=section))
    result = mmdit("train", "--config", "run.yaml")
    assert result.code == 2
    assert "run.yaml: " in result.error
    assert not payload.exists()
    assert "payload" not in sys.modules


WORDS = [
    *([f"--{section}", "{class_path: payload.X}"] for section in TRAIN),
    *([f"--{section}", "payload.X"] for section in TRAIN),
    *([f"--{section}.class_path", "payload.X"] for section in TRAIN),
    *([f"--{section}=payload.yaml"] for section in TRAIN),
    ["--alignment.help", "payload.X"],
    ["--alignment.help=payload.X"],
    ["--model.init_args.size", "S"],
]


def test_no_option_names_code():
    for words in WORDS:
        with pytest.raises(UserError, match=r"class_path|init_args|expected keys with values|unknown option"):
            check_options(words, TRAIN)


@pytest.mark.parametrize(
    "words",
    [
        *WORDS[::9],
        ["--autoencoder.codecs", "{depth: {class_path: payload.X}}"],
        ["--task.mixture", "{class_path: payload.X}"],
        ["--autoencoder.codecs.depth", "{class_path: payload.X}"],
    ],
    ids=" ".join,
)
def test_an_option_that_names_code_is_one_line(mmdit, payload, words):
    result = mmdit("train", "--output", "run", *words)
    assert result.code == 2
    assert result.error
    assert not payload.exists()
    assert "payload" not in sys.modules


def test_no_option_of_another_command_names_code(mmdit, payload):
    for section in ("marigold", "masks"):
        result = mmdit("data", "label", "--images", ".", "--output", "o", f"--{section}", "{class_path: payload.X}")
        assert result.code == 2
    assert not payload.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: &a\n  x: *a\n", "anchor &a in line 1"),
        ("seed: *a\n", "alias *a"),
        ("seed: &a 3\n", "anchor &a"),
        ("model:\n  <<: {size: S}\n", "merge key << in line 2"),
        ("seed: !!python/object/apply:os.system ['touch PWNED']\n", "tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("seed: !!python/name:payload.X\n", "tag "),
        ("seed: !payload 3\n", "tag !payload"),
        ("config: other.yaml\n", "key 'config' is an option of the command line"),
        ("model: {config: other.yaml}\n", "key 'config'"),
        ("print_config: ''\n", "key 'print_config'"),
        ("seed: 1\nseed: 2\n", "key 'seed' stands twice, again in line 2"),
        ("1: 2\n", "key 1 is a int"),
        ("? [a]\n: b\n", "a key in line 1 that is not a name"),
        ("seed: " + "[" * 40 + "]" * 40 + "\n", "more than 32 levels deep"),
        ("seed: [" + "1," * 10_001 + "]\n", "more than 10000 values"),
        ("seed: " + "x" * 10_001 + "\n", "a value of 10001 characters"),
        ("#" * (1 << 18) + "\n", "at most 262144 are read"),
        ("seed: 2026-13-41\n", "not readable as YAML: month must be in 1..12"),
        ("seed: " + "9" * 5000 + "\n", "not readable as YAML"),
        ("output: one\n--- \noutput: two\n", "single document"),
    ],
)  # fmt: skip
def test_configurations_that_are_not_plain_are_refused_at_once(mmdit, payload, tmp_path, text, expected):
    (tmp_path / "other.yaml").write_text("secret: 1\n")
    (tmp_path / "run.yaml").write_text(text)
    result = mmdit("train", "--config", "run.yaml", "--output", "run")
    assert result.code == 2
    assert expected in result.error
    assert "secret" not in result.err + result.out
    assert not payload.exists()
    assert not (tmp_path / "run").exists()


def test_nested_aliases_in_an_option_do_not_grow(mmdit):
    laughs = "{a: &a [x, x, x], b: &b [*a, *a], c: [*b, *b]}"
    assert mmdit("train", "--output", "run", "--task.mixture", laughs).code == 2


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_a_configuration_that_is_no_file_is_refused(mmdit, tmp_path, kind):
    path = {"fifo": tmp_path / "fifo", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    result = mmdit("train", "--config", path, "--output", "run")
    assert result.code == 2
    assert f"is a {'FIFO' if kind == 'fifo' else kind}, not a file" in result.error


def test_plain_values_are_read_as_before(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "\ufeffoutput: run\nema: null\nalignment: {weight: 1e-3}\ntask: {mixture: {joint: 1.5, understanding: 2}}\n"
        "autoencoder: {codecs: {depth: {quantiles: [0.1, 0.9]}}}\nmodel.size: S\n",
        encoding="utf-8",
    )
    parser = build_parser(COMMANDS["train"].load(), "mmdit train", config=True)
    values = parser.parse_args(["--config", str(tmp_path / "a.yaml"), "--model", "{depth: 3}", "--optimizer.lr=2e-4"])
    assert (values.ema, values.alignment.weight, values.optimizer.lr) == (None, 1e-3, 2e-4)
    assert (values.model.size, values.model.depth) == ("S", 3)
    assert values.task.mixture == {"joint": 1.5, "understanding": 2}
    assert values.autoencoder.codecs == {"depth": {"quantiles": [0.1, 0.9]}}
    again = parser.parse_args(["--output", "x", "--ema", "null", "--alignment", "null", "--ema", "{decay: 0.5}"])
    assert (again.ema.decay, again.alignment) == (0.5, None)


def test_home_is_expanded_in_options_and_yaml(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text(
        "output: ~/run\nresume: ~/run/checkpoints/a.ckpt\ndata: {path: ~/latents}\nmodel: {pretrained: ~/old}\n"
        "alignment: {teacher: ~/teacher, images: ~/images}\n"
    )
    train = build_parser(COMMANDS["train"].load(), "mmdit train", config=True)
    values = train.parse_args(["--config=~/a.yaml"])
    assert values.output == tmp_path / "run"
    assert values.resume == str(tmp_path / "run/checkpoints/a.ckpt")
    assert values.data.path == str(tmp_path / "latents")
    assert values.model.pretrained == str(tmp_path / "old")
    assert (values.alignment.teacher, values.alignment.images) == (str(tmp_path / "teacher"), str(tmp_path / "images"))
    assert train.parse_args(["--config", "~/a.yaml", "--data.path=~/b"]).data.path == str(tmp_path / "b")
    understand = build_parser(COMMANDS["understand"].load(), "mmdit understand", ("pictures",))
    values = understand.parse_args(["~/a", "b~", "~nobody-of-this-name/x", "--output=~/o", "--model=~/m"])
    assert values.pictures == [str(tmp_path / "a"), "b~", "~nobody-of-this-name/x"]
    assert (values.output, values.model) == (tmp_path / "o", str(tmp_path / "m"))


def test_every_path_option_of_every_command_expands_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    num_paths = 0
    for name, command in COMMANDS.items():
        parser = build_parser(command.load(), f"mmdit {name}", command.positional, command.config)
        hints = {action.dest: str(getattr(action, "_typehint", "")) for action in parser._actions}
        required = [action for action in parser._actions if action.required and action.option_strings]
        needed = list(itertools.chain(*([action.option_strings[-1], "x"] for action in required)))
        values = ["mmgen" if word == "format" else "x" for word in command.positional]
        for dest, hint in hints.items():
            if "Path" not in hint or dest in command.positional:
                continue
            num_paths += 1
            given = parser.parse_args([*values, *needed, f"--{dest}=~/p"])
            assert given[dest] == tmp_path / "p", f"{name} --{dest}"
    assert num_paths > 20


def _python(code: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, *code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )


BESIDE = (
    "yaml",
    "json5",
    "torchmetrics",
    "sitecustomize_",
    "argparse",
    "timm",
    "jsonargparse",
    "dataclasses",
    "traceback",
)


@pytest.mark.parametrize("how", ["module", "call", "empty entry"])
def test_no_command_runs_code_of_the_working_directory(tmp_path, how):
    for name in BESIDE:
        (tmp_path / f"{name}.py").write_text(f"open('PWNED', 'a').write('{name}\\n')\n")
    (tmp_path / "run.yaml").write_text("output: [\n")
    words = ["train", "--config", "run.yaml"]
    if how == "module":
        done = _python(["-m", "mmdit.cli.main", *words], tmp_path)
    elif how == "call":
        # What the interpreter itself loads before our first line is the caller's doing; ours comes from elsewhere.
        code = (
            f"import argparse, dataclasses, traceback; from mmdit.cli.main import main; raise SystemExit(main({words}))"
        )
        for name in ("argparse", "dataclasses", "traceback"):
            (tmp_path / f"{name}.py").unlink()
        done = _python(["-c", code], tmp_path)
    else:
        path = os.pathsep.join(["", str(ROOT), str(ROOT / "kernels")])
        for name in ("argparse", "dataclasses", "traceback"):
            (tmp_path / f"{name}.py").unlink()
        code = f"import sys; sys.path.pop(0); from mmdit.cli.main import main; raise SystemExit(main({words}))"
        done = _python(["-c", code], tmp_path, PYTHONPATH=path)
    assert done.returncode == 2, done.stderr
    assert "run.yaml: not readable as YAML" in done.stderr
    assert not (tmp_path / "PWNED").exists(), (tmp_path / "PWNED").read_text()


def test_the_checkout_itself_may_be_the_working_directory(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [sys.executable, "-m", "mmdit.cli.main", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_callers_path_is_as_before(mmdit, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    before = list(sys.path)
    assert mmdit("--version").code == 0
    assert sys.path == before
