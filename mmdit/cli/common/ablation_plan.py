"""How each variant of an ablation is trained: its whole configuration, and when it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmdit.bounds import MAX_SEED
from mmdit.cli.common.ablation_table import AblationTable, Variant
from mmdit.errors import UserError

if TYPE_CHECKING:
    from mmdit.training.config import TrainingConfig

T = TypeVar("T")
STAGE_SEEDS = 1_000_003  # added to the seed of a run that goes on from another's model


@dataclass(frozen=True)
class Plan:
    """How a variant is trained: its configuration, and the steps after which it is measured.

    ``stage``: how many variants its model has been through before; each draws samples, times and noise of its own.
    """

    variant: Variant
    config: TrainingConfig
    steps: tuple[int, ...]
    options: Mapping[str, Any]
    stage: int = 0

    def of(self, seed: int, pretrained: Path | None = None) -> TrainingConfig:
        """The configuration of one run; ``pretrained``: the model that it begins with, None = what the options say."""
        model = self.config.model if pretrained is None else replace(self.config.model, pretrained=str(pretrained))
        return replace(self.config, seed=(seed + STAGE_SEEDS * self.stage) % (MAX_SEED + 1), model=model)

    def refuse_other_model(self, before: Plan) -> None:
        """Raise UserError where the model of the plan that this one comes after is another."""
        ours, theirs = (asdict(replace(each.config.model, pretrained=None, trainable=None)) for each in (self, before))
        for name, value in ours.items():
            if value != theirs[name]:
                raise UserError(
                    f"comes after {before.variant.name!r}, whose model.{name} is {theirs[name]}, not {value}: give both the same"
                )

    @property
    def samples_per_step(self) -> int:
        return self.config.data.batch_size * self.config.trainer.accumulate_grad_batches


def plan_all(table: AblationTable, names: Sequence[str], output: Path, data: Path, samples: int) -> dict[str, Plan]:
    """Parse the options of variants as ``mmdit train`` does. Raises UserError naming the variant for those that it refuses."""
    from mmdit.cli.common.parsing import build_parser
    from mmdit.cli.main import COMMANDS
    from mmdit.training.config import TrainingConfig

    command = COMMANDS["train"]
    parser = build_parser(command.load(), "mmdit train", command.positional, command.config)

    def parse(variant: Variant) -> TrainingConfig:
        values = vars(parser.instantiate(parser.parse_args(table.arguments(variant, output, data, 0))))
        sections = TrainingConfig.__dataclass_fields__
        return TrainingConfig(**{name: value for name, value in values.items() if name in sections})

    chosen = {name: table.variants[name] for name in names}
    return {
        name: _plan(table, variant, with_context(table, name, partial(parse, variant)), samples)
        for name, variant in chosen.items()
    }


def _stage(table: AblationTable, variant: Variant) -> int:
    return 0 if variant.after is None else 1 + _stage(table, table.variants[variant.after])


def _plan(table: AblationTable, variant: Variant, config: TrainingConfig, samples: int) -> Plan:
    if config.recipe != "transformer" or config.lora is not None:
        raise UserError(f"{table.path}: variant {variant.name!r}: an ablation is of recipe 'transformer', without lora")
    if config.trainer.devices not in (1, "1") or config.trainer.num_nodes != 1:
        raise UserError(
            f"{table.path}: variant {variant.name!r}: trainer.devices is {config.trainer.devices}: give 1, a run is one process"
        )
    if config.trainer.max_hours is not None:
        raise UserError(
            f"{table.path}: variant {variant.name!r}: trainer.max_hours is {config.trainer.max_hours:g}: leave it out, runs are "
            "compared after equal samples"
        )
    per_step = config.data.batch_size * config.trainer.accumulate_grad_batches
    max_steps = round(samples * variant.share / per_step)
    if max_steps < 1:
        raise UserError(
            f"--samples is {samples}: variant {variant.name!r} takes {per_step} a step: give at least "
            f"{round(per_step / variant.share)}"
        )
    config = replace(config, trainer=replace(config.trainer, max_steps=max_steps))
    steps = sorted({max(1, round(max_steps * point / table.points)) for point in range(1, table.points + 1)})
    after = {} if variant.after is None else {"after": variant.after}
    return Plan(variant, config, tuple(steps), changed_options(config) | after, _stage(table, variant))


def with_context(table: AblationTable, name: str, action: Callable[[], T]) -> T:
    """Run ``action``; what is refused says which variant it is about."""
    try:
        return action()
    except UserError as error:
        raise UserError(f"{table.path}: variant {name!r}: {error}") from error


def changed_options(config: TrainingConfig) -> dict[str, Any]:
    """Dotted name -> value of all options that are not at their defaults, so that a new option changes no old record.

    A section that is off by default and on here is there by its own name, as true. Without the seed, of which there are several.
    """
    from mmdit.storage.json_object import flatten
    from mmdit.training.config import TrainingConfig
    from mmdit.training.run import to_plain

    plain = TrainingConfig(seed=config.seed)
    switched_on = {
        name: type(value)()
        for name, value in vars(config).items()
        if value is not None and getattr(plain, name) is None
    }
    defaults, values = (flatten(to_plain(each)) for each in (replace(plain, **switched_on), config))
    own = {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}
    return {**dict.fromkeys(switched_on, True), **own}
