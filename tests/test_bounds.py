from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from mmdit.bounds import ClosedUnitInterval, PositiveInt, check_bounds
from mmdit.cli.common.parsing import build_parser
from mmdit.cli.main import run
from mmdit.errors import UserError
from mmdit.training.config import EMAConfig, TrainingConfig
from mmdit.training.recipes import build_run
from mmdit.training.run import make_trainer


def _with(key: str, value: Any) -> TrainingConfig:
    config = TrainingConfig()
    section, _, name = key.rpartition(".")
    if not section:
        return replace(config, **{name: value})
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("seed", -1, "0 to 9223372036854775807"),
        ("data.num_workers", -1, "0 to 1024"),
        ("data.batch_size", 0, "1 to 1000000"),
        ("data.batch_size", 1.5, "1 to 1000000"),
        ("model.class_dropout_prob", 2.0, "a number from 0 to 1"),
        ("optimizer.lr", 0.0, "a number above 0"),
        ("optimizer.lr", float("inf"), "a number above 0"),
        ("optimizer.weight_decay", -0.1, "a number, at least 0"),
        ("optimizer.betas", (0.9, 1.5), "a number from 0 to below 1"),
        ("trainer.gradient_clip_val", 0.0, "a number above 0"),
        ("trainer.max_steps", 10**9, "1 to 100000000"),
        ("preview.num_inference_steps", 10**9, "1 to 10000"),
        ("trainer.log_every", 0, "at least 1"),
        ("ema.decay", float("nan"), "a number from 0 to below 1"),
        ("ema.decay", 1.0, "a number from 0 to below 1"),
    ],
)
def test_numbers_out_of_range(key: str, value: Any, right: str) -> None:
    """In Python as on the command line, where no number that a run starts with is out of range."""
    wrong = max(value) if isinstance(value, tuple) else value
    with pytest.raises(UserError, match=f"^{key} is {wrong}: give {right}$"):
        build_run(_with(key, value))
    arguments = ["train", "--output", "out", f"--{key}", str(list(value) if isinstance(value, tuple) else value)]
    with pytest.raises(UserError, match=f"^--{key} is {wrong}: give .*{right}(, or null)?$"):
        run(arguments)


@dataclass
class Sizes:
    """Sizes.

    Args:
        count: how many.
        share: of them.
        pair: two of them.
    """

    count: PositiveInt = 1
    share: ClosedUnitInterval | None = None
    pair: tuple[PositiveInt, PositiveInt] = (1, 2)


def _parse(*arguments: str) -> dict[str, Any]:
    def command(number: PositiveInt = 3, numbers: list[PositiveInt] | None = None, sizes: Sizes = Sizes()) -> None:  # noqa: B008
        """Count.

        Args:
            number: a number.
            numbers: more of them.
            sizes: a section.
        """

    parser = build_parser(command, "count")
    return vars(parser.instantiate(parser.parse_args(list(arguments))))


def test_parsed_numbers_are_pythons_own() -> None:
    """Checkpoints and YAML take no subclass of int: a run that was saved with one could not be read."""
    values = _parse("--number", "5", "--numbers", "[1,2]", "--sizes.share", "1", "--sizes.pair", "[3,4]")
    sizes = values["sizes"]
    numbers = [values["number"], *values["numbers"], sizes.count, *sizes.pair]
    assert numbers == [5, 1, 2, 1, 3, 4]
    assert {type(number) for number in numbers} == {int}
    assert (sizes.share, type(sizes.share)) == (1.0, float)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--number", "0"], "--number is 0: give at least 1"),
        (["--number", "many"], "--number is many: give a whole number, at least 1"),
        (["--number", "1.5"], "--number is 1.5: give a whole number, at least 1"),
        (["--number", "null"], "--number is null: give a whole number, at least 1"),
        (["--number", "[1]"], "--number is a list: give a whole number, at least 1"),
        (["--numbers", "[1,0]"], "--numbers is [1, 0]: give at least 1, or null"),
        (["--sizes.share", "2"], "--sizes.share is 2: give a number from 0 to 1, or null"),
        (["--sizes.share", "nan"], "--sizes.share is nan: give a number from 0 to 1, or null"),
        (["--sizes.pair", "[1,-2]"], "--sizes.pair is -2: give at least 1"),
    ],
)
def test_what_the_command_line_says(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _parse(*arguments)
    assert str(caught.value) == message


def test_devices_that_nothing_can_take() -> None:
    trainer = replace(TrainingConfig().trainer, accelerator="cpu", devices="some")
    with pytest.raises(UserError, match=r"trainer settings do not fit this machine: .*devices"):
        make_trainer(trainer, None, None, build_run(TrainingConfig()).data, [])


def test_defaults_bounds_and_null_are_in_range() -> None:
    check_bounds(TrainingConfig())
    check_bounds(replace(TrainingConfig(), ema=None))
    check_bounds(replace(TrainingConfig(), ema=EMAConfig(0.0)))
    check_bounds(_with("trainer.gradient_clip_val", None))
    check_bounds(_with("trainer.max_steps", 1))
