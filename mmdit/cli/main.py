"""``mmdit COMMAND``: each command is a typed function; its docstring is its help, its arguments are its options."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mmdit.cli.search_path import leave_working_directory, without_working_directory
from mmdit.errors import UserError, first_line, is_out_of_memory, nearest_names

EXIT_DONE, EXIT_FAILURE, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
# Causes outside the program that the user can put right; the rest are our defects.
_USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP}
_USER_OS_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)

_INTERRUPTS: list[int] = []  # signals of this process


@dataclass(frozen=True)
class Command:
    """Where a command's function is (imported when the command is named), and the first line of its docstring.

    positional: names of arguments given without an option name, a list last; config: whether it takes ``--config``.
    """

    function: str
    summary: str
    positional: tuple[str, ...] = ()
    config: bool = False

    def load(self) -> Callable[..., Any]:
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)


COMMANDS: dict[str, Command] = {
    "demo": Command("mmdit.cli.demo:demo", "Show what the bundled model does: generate, understand, condition."),
    "generate": Command(
        "mmdit.cli.generate:generate",
        "Generate aligned images of all modalities from categories or prompts.",
        ("categories",),
    ),
    "understand": Command(
        "mmdit.cli.understand:understand",
        "Predict depth, normals and segmentation from RGB images and videos.",
        ("pictures",),
    ),
    "condition": Command("mmdit.cli.generate:condition", "Generate the other modalities from any subset of them."),
    "edit": Command(
        "mmdit.cli.edit:edit", "Generate a region of an image anew, in all modalities; the rest is kept.", ("image",)
    ),
    "translate": Command(
        "mmdit.cli.edit:translate", "Make new RGB images with the structure of given ones.", ("images",)
    ),
    "mesh": Command("mmdit.cli.mesh:mesh", "Make a textured mesh and a point cloud of samples.", ("samples",)),
    "ui": Command(
        "mmdit.cli.ui:ui", "Serve a page that generates, understands, conditions, translates and edits in a browser."
    ),
    "train": Command(
        "mmdit.cli.train:train",
        "Train a transformer, or one of the networks that it learns from and is judged by.",
        config=True,
    ),
    "evaluate": Command("mmdit.cli.evaluate:evaluate", "Measure a model on a dataset and write every metric as JSON."),
    "samples": Command(
        "mmdit.cli.samples:samples",
        "Generate RGB samples for a benchmark, on any number of processes, into one .npz.",
    ),
    "evaluate-generation": Command(
        "mmdit.cli.samples:evaluate_generation",
        "Measure generated images against a reference: FID, sFID, IS, precision, recall, FD-DINOv2.",
    ),
    "evaluate-geometry": Command(
        "mmdit.cli.evaluate_geometry:evaluate_geometry", "Measure zero-shot depth or normals on a public benchmark."
    ),
    "evaluate-prompts": Command(
        "mmdit.cli.evaluate_prompts:evaluate_prompts",
        "Measure a model on a public benchmark of prompts.",
    ),
    "evaluate-video": Command(
        "mmdit.cli.evaluate_video:evaluate_video",
        "Measure how much a model flickers on camera paths through rendered scenes.",
    ),
    "evaluate-captioner": Command(
        "mmdit.cli.evaluate_captioner:evaluate_captioner", "Measure what a captioner says of rendered scenes."
    ),
    "prompt-figures": Command(
        "mmdit.cli.prompt_figures:prompt_figures",
        "Draw what the fusing scale does, what is made of styles by pictures, and where the pseudo-words of subjects lie.",
    ),
    "compare-lora": Command(
        "mmdit.cli.compare_lora:compare_lora", "Compare a subject's picture with a LoRA that is trained for it."
    ),
    "sweep": Command(
        "mmdit.cli.sweep:sweep", "Measure quality against the number of steps, for each sampler and task."
    ),
    "ablate": Command(
        "mmdit.cli.ablate:ablate", "Train variants of a recipe on equal samples, and measure their learning curves."
    ),
    "ablation-figures": Command(
        "mmdit.cli.ablation_figures:ablation_figures",
        "Draw the table and the picture of ablations from their CSV files.",
        ("results",),
    ),
    "diversity": Command(
        "mmdit.cli.diversity:diversity",
        "Generate many RGB images for one depth map, and measure how they differ and keep to it.",
    ),
    "data render": Command(
        "mmdit.cli.data:render", "Render procedural scenes with exact ground truth, or scenes of your own meshes."
    ),
    "data import": Command("mmdit.cli.data_import:import_dataset", "Import folders of aligned files as a dataset."),
    "data label": Command(
        "mmdit.cli.data_photographs:label", "Label a folder of images with depth, normals and segmentation."
    ),
    "data prompts": Command(
        "mmdit.cli.data_photographs:prompts",
        "Describe photographs for training on prompts: captions, entities, boxes, crops and masks.",
    ),
    "data hypersim": Command("mmdit.cli.data_photographs:hypersim", "Import Hypersim's own layout as a dataset."),
    "data encode": Command("mmdit.cli.data:encode", "Encode a dataset into latents for training."),
    "data check": Command("mmdit.cli.data:check", "Read every file of a dataset and list what is wrong."),
    "convert": Command(
        "mmdit.cli.convert:convert",
        "Convert a checkpoint of MMGen, REPA or SiT into a pipeline folder.",
        ("format", "checkpoint"),
    ),
    "export onnx": Command(
        "mmdit.cli.export:export_onnx", "Export a model's networks as ONNX graphs, and compare them with PyTorch."
    ),
    "bench train": Command(
        "mmdit.cli.bench:bench_train", "Time training steps of a configuration, as mmdit train takes them.", config=True
    ),
    "bench sample": Command(
        "mmdit.cli.bench:bench_sample",
        "Time sampling with the network of a configuration and random weights.",
        config=True,
    ),
    "bench loader": Command("mmdit.cli.bench:bench_loader", "Time reading latents from the page cache on one core."),
    "env": Command("mmdit.cli.env:env", "Print versions, devices and kernels: what an issue report needs."),
}


def overview(group: str = "") -> str:
    """Return the help of ``mmdit`` or of a group of commands such as ``mmdit data``."""
    listed = {name: command for name, command in COMMANDS.items() if name.startswith(group)}
    width = max(len(name) for name in listed)
    lines = [f"usage: mmdit {group}{' ' if group else ''}COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in listed.items()]
    return "\n".join(
        [*lines, "", "'mmdit COMMAND --help' documents every option. 'mmdit --version' prints the version."]
    )


def find_command(arguments: Sequence[str]) -> tuple[str, list[str]] | None:
    """Split arguments into a command's name and the rest; None where help was asked for, and printed.

    Raises UserError for no command or an unknown one.
    """
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help"):
        print(overview())
        return None
    if first in groups:
        second = arguments[1] if len(arguments) > 1 else ""
        if second in ("-h", "--help"):
            print(overview(first))
            return None
        name, rest = f"{first} {second}", list(arguments[2:])
        known = [command for command in COMMANDS if command.startswith(first + " ")]
    else:
        name, rest = first, list(arguments[1:])
        known = list(dict.fromkeys(command.split()[0] for command in COMMANDS))
    if name in COMMANDS:
        return name, rest
    listed = ", ".join(command.split()[-1] for command in known)
    if not name.strip() or name.endswith(" "):
        raise UserError(f"no command given after '{('mmdit ' + name).strip()}': give one of {listed}")
    raise UserError(f"unknown command {name!r}: did you mean {nearest_names(name, known, 1)[0]!r}? Known: {listed}")


def run(arguments: Sequence[str]) -> int:
    """Parse and run one command; exceptions pass through."""
    if list(arguments) == ["--version"]:
        from mmdit.storage.versions import DISTRIBUTION, version_of

        print(f"mmdit {version_of(DISTRIBUTION)}")
        return EXIT_DONE
    found = find_command(arguments)
    if found is None:
        return EXIT_DONE
    name, rest = found
    from mmdit.cli.common.parsing import build_parser

    command = COMMANDS[name]
    function = command.load()
    parser = build_parser(function, f"mmdit {name}", command.positional, command.config)
    if "-h" in rest or "--help" in rest:
        print(parser.format_help(), end="")
        return EXIT_DONE
    values = parser.instantiate(parser.parse_args(rest))
    own = {key: value for key, value in vars(values).items() if key not in ("config", "debug", "print_config")}
    result = function(**own)
    return result if isinstance(result, int) else EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 2 wrong input, 1 anything else, 130 interrupted."""
    if arguments is None:  # the process is ours
        leave_working_directory()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        return _main(sys.argv[1:])
    before = list(sys.path)
    sys.path[:] = without_working_directory(before)
    try:
        return _main(list(arguments))
    finally:
        sys.path[:] = before


def _interrupt(number: int, frame: FrameType | None) -> None:
    _INTERRUPTS.append(number)
    signal.default_int_handler(number, frame)


def _main(arguments: list[str]) -> int:
    if hasattr(sys.stdout, "reconfigure"):  # a file name need not be in the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    debug = "--debug" in arguments or os.environ.get("MMDIT_DEBUG", "0") not in ("", "0")
    try:
        return run(arguments)
    except SystemExit as stop:  # --print_config
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    except KeyboardInterrupt:
        print("mmdit: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `mmdit env | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except Exception as error:
        if debug:
            traceback.print_exc()
        # libraries that are being imported turn an interruption into an error of theirs
        if _INTERRUPTS and isinstance(error, RuntimeError | ImportError):
            print("mmdit: interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        code, line = explain(error)
        print(f"mmdit: error: {line}", file=sys.stderr)
        return code


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the one line for an exception."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return EXIT_WRONG_INPUT, text
    if isinstance(error, OSError) and (isinstance(error, _USER_OS_ERRORS) or error.errno in _USER_ERRNOS):
        where = f"{error.filename}: " if error.filename else ""
        return EXIT_WRONG_INPUT, f"{where}{error.strerror or text}"
    if is_out_of_memory(error):
        advice = "give fewer samples at a time (--batch_size), a smaller size or a smaller model"
        return EXIT_WRONG_INPUT, f"out of memory ({first_line(error)}): {advice}"
    hint = "add --debug, or set MMDIT_DEBUG=1, to see the traceback"
    return EXIT_FAILURE, f"{type(error).__name__}: {text} ({hint})"


if __name__ == "__main__":
    sys.exit(main())
