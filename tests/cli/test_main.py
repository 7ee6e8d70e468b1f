from __future__ import annotations

import errno
import inspect
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest

from mmdit.cli import main as main_module
from mmdit.cli.common.parsing import build_parser
from mmdit.cli.main import COMMANDS, explain, main, overview
from mmdit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_command(mmdit):
    result = mmdit("--help")
    assert result.code == 0
    assert all(f"  {name} " in result.out for name in COMMANDS)
    assert mmdit("data", "--help").out.count("data ") >= 3


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name):
    command = COMMANDS[name]
    function = command.load()
    documentation = docstring_parser.parse(inspect.getdoc(function))
    assert documentation.short_description == command.summary
    described = {parameter.arg_name for parameter in documentation.params if parameter.description}
    parameters = inspect.signature(function).parameters.values()
    # further keywords are those of a dataclass, which describes them
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    assert named <= described

    parser = build_parser(function, f"mmdit {name}", command.positional, command.config)
    assert [action.dest for action in parser._actions if not action.help] == []
    text = parser.format_help()
    assert text.startswith(f"usage: mmdit {name}")
    for option in named - set(command.positional):
        assert f"--{option}" in text


def test_version(mmdit):
    assert mmdit("--version").out.startswith("mmdit ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give one of demo, generate"),
        (["genrate"], "did you mean 'generate'?"),
        (["data"], "give one of render, import, label, prompts, hypersim, encode, check"),
        (["data", "rendr"], "did you mean 'data render'?"),
        (["understand"], "missing IMAGE_OR_DIR"),
        (["generate", "torus", "--num_image", "3"], "unknown option '--num_image': did you mean '--num_images'?"),
        (["generate", "torus", "--num_images", "x"], "--num_images is x: give a whole number, at least 1"),
        (["generate", "torus", "--num_images"], "--num_images: expected one argument"),
        (["generate", "torus", "--dtype", "fp8"], "--dtype: expected one of"),
        (["condition", "depth.npy"], "unexpected argument 'depth.npy'"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (
            ["train", "--output", "o", "--trainer.max_hours", "x"],
            "--trainer.max_hours is x: give a number above 0, or null",
        ),
        (["train", "--output", "o", "--alignment.weight", "x"], "--alignment.weight is x: give a number, at least 0"),
        (["train", "--output", "o", "--ema", "x"], "--ema: expected keys with values or null, got x"),
        (
            ["data", "encode", "--data", "d", "--output", "o", "--depth_space", "metres"],
            "--depth_space: expected one of ['disparity', 'depth'] or null, got metres",
        ),
        (["train", "--model.sise", "S"], "did you mean '--model.size'?"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(mmdit, arguments, expected):
    result = mmdit(*arguments)
    assert result.code == 2
    assert expected in result.error


def test_unknown_key_of_a_configuration_names_the_nearest(mmdit, tmp_path):
    (tmp_path / "run.yaml").write_text("output: run\ntrainer:\n  max_step: 3\n")
    result = mmdit("train", "--config", "run.yaml")
    assert result.code == 2
    assert "'trainer.max_step'" in result.error
    assert "'trainer.max_steps'" in result.error


def test_broken_yaml_is_one_line(mmdit, tmp_path):
    (tmp_path / "run.yaml").write_text("output: [\n")
    result = mmdit("train", "--config", "run.yaml")
    assert result.code == 2
    assert "line 2" in result.error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "run.yaml: holds nothing"),
        ("- seed\n", "run.yaml: holds a list"),
        ("seed: [\n", "run.yaml: not readable as YAML"),
        ("trainer: 3\n", "run.yaml: trainer is 3, but a section"),
        ("trainer: {max_steps: null}\n", "--trainer.max_steps is null: give 1 to 100000000"),
        ("foo: 1\n", "unknown key 'foo': did you mean"),
        ("lora: {ranc: 1}\n", "--lora: unknown key 'ranc': did you mean 'rank'?"),
    ],
)
def test_configurations_of_the_wrong_kind(mmdit, tmp_path, text, expected):
    (tmp_path / "run.yaml").write_text(("output: out\n" if text.startswith(("trainer", "foo", "lora")) else "") + text)
    result = mmdit("train", "--config", "run.yaml")
    assert result.code == 2
    assert expected in result.error
    assert "'help'" not in result.error
    assert not (tmp_path / "out").exists()


def test_a_refused_start_leaves_the_configuration_of_the_run(mmdit, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step=00000004.ckpt").touch()
    (tmp_path / "run" / "config.yaml").write_text("seed: 3\n")
    result = mmdit("train", "--config", Path(__file__).parents[2] / "configs" / "debug.yaml", "--output", "run")
    assert result.code == 2
    assert "--resume auto" in result.error
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 3\n"


def _fake(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        """Print versions, devices and kernels: what an issue report needs."""
        raise error

    monkeypatch.setattr("mmdit.cli.env.env", fail)


def test_defects_exit_1_with_a_hint(mmdit, monkeypatch):
    _fake(monkeypatch, RuntimeError("two\nlines"))
    result = mmdit("env")
    assert result.code == 1
    assert "RuntimeError: two lines" in result.error
    assert "--debug" in result.error


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_the_traceback(mmdit, monkeypatch, how):
    _fake(monkeypatch, RuntimeError("boom"))
    if how == "variable":
        monkeypatch.setenv("MMDIT_DEBUG", "1")
    result = mmdit("env", *(["--debug"] if how == "option" else []))
    assert result.code == 1
    assert "Traceback (most recent call last)" in result.err


def test_interrupt_exits_130(mmdit, monkeypatch):
    _fake(monkeypatch, KeyboardInterrupt())
    assert mmdit("env").code == 130


def test_an_interruption_that_an_import_makes_an_error_of_is_one():
    code = """
import os, signal, sys
from mmdit.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal: in the background it is ignored

def run(arguments):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        raise RuntimeError("Failed to import") from error

main.run = run
sys.exit(main.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "mmdit: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo", "--output", ""], "--output is empty: give a path"),
        (["demo", "--output="], "--output is empty: give a path"),
        (["understand", ""], "IMAGE_OR_DIR_OR_VIDEO is empty"),
        (["edit", "", "--mask", "a.png"], "IMAGE is empty: give a path"),
        (["mesh", "a", ""], "SAMPLE_FOLDER is empty"),
        (["condition", "--depth", ""], "--depth is empty: give a path"),
        (["demo", "--seed", "1_000"], "--seed is 1_000: give a number in the digits 0 to 9"),
        (["demo", "--seed=٥"], "--seed is ٥: give a number"),
        (["demo", "--seed", "0x10"], "--seed is 0x10: give a number"),
        (["demo", "--num_inference_steps", "1_0"], "--num_inference_steps is 1_0: give a number"),
        (["demo", "--guidance_scale", "1:30"], "--guidance_scale is 1:30: give a number"),
        (["demo", "--lora_scale", "1_0.5"], "--lora_scale is 1_0.5: give a number"),
        (["bench", "train", "--trainer.max_steps", "1_0"], "--trainer.max_steps is 1_0: give a number"),
        (["understand", "a.png", "--exr", "maybe"], "--exr is maybe: give true or false, or nothing"),
        (["generate", "a", "--overwrite", "1"], "--overwrite is 1: give true or false, or nothing"),
    ],
)
def test_words_that_mean_something_else(mmdit, arguments, expected):
    result = mmdit(*arguments)
    assert result.code == 2
    assert result.error.startswith(f"mmdit: error: {expected}")


def test_the_help_calls_paths_paths():
    for command in COMMANDS.values():
        parser = build_parser(command.load(), "mmdit", command.positional, command.config)
        assert "<class" not in parser.format_help()


def test_explain_tells_users_errors_from_defects():
    assert explain(UserError("a\n b")) == (2, "a b")
    assert explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "x.png")) == (
        2,
        "x.png: No such file or directory",
    )
    assert explain(OSError(errno.ENOSPC, "No space left on device"))[0] == 2
    assert explain(OSError(errno.EIO, "Input/output error"))[0] == 1
    assert explain(ValueError("ours"))[0] == 1
    code, line = explain(MemoryError("Unable to allocate 9 TiB"))
    assert code == 2
    assert line.startswith("out of memory (Unable to allocate 9 TiB): give fewer samples at a time (--batch_size)")


def test_switch_may_stand_alone():
    parser = build_parser(COMMANDS["generate"].load(), "mmdit generate", ("categories",))
    assert parser.parse_args(["--overwrite", "torus"]).overwrite is True
    assert parser.parse_args(["torus", "--overwrite"]).overwrite is True
    assert parser.parse_args(["torus", "--overwrite", "false"]).overwrite is False
    assert parser.parse_args(["torus"]).overwrite is False


def test_overlays_and_options_win_over_earlier_files(tmp_path):
    (tmp_path / "a.yaml").write_text("output: run\ntrainer: {max_steps: 5, precision: bf16-mixed}\n")
    (tmp_path / "b.yaml").write_text("trainer: {max_steps: 7}\nseed: 3\n")
    parser = build_parser(COMMANDS["train"].load(), "mmdit train", config=True)
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    values = parser.parse_args(["--config", a, "--config", b, "--seed", "9"])
    assert (values.trainer.max_steps, values.trainer.precision, values.seed) == (7, "bf16-mixed", 9)


def test_startup_is_lean():
    """Help must not wait for torch; nothing may wait for lightning."""
    code = (
        "import sys; from mmdit.cli.main import main; assert main(['--help']) == 0;"
        "assert main(['generate', '--help']) == 0; assert main(['generate', 'x', '--sed', '1']) == 2;"
        "print({'torch', 'diffusers', 'lightning'} & set(sys.modules)); assert main(['env']) == 0;"
        "print({'diffusers', 'lightning', 'transformers'} & set(sys.modules))"
    )
    path = [str(ROOT), str(ROOT / "kernels")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("set()") == 2, done.stdout
    assert done.stderr.splitlines() == [  # no library's warnings beside our line
        "mmdit: error: unknown option '--sed': did you mean '--seed'? 'mmdit generate --help' lists them all"
    ]


def test_main_reads_the_process_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mmdit", "--help"])
    assert main() == 0
    assert capsys.readouterr().out.strip() == overview().strip()
    assert main_module.EXIT_WRONG_INPUT == 2
