from dataclasses import asdict
from pathlib import Path

from mmdit.cli.common.parsing import build_parser
from mmdit.cli.main import COMMANDS
from mmdit.training.subject_lora import Preparation, subject_lora_config

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "scenes64_lora.yaml"


def test_a_subject_is_prepared_by_the_recipe_of_a_style() -> None:
    """What differs is what a few captioned pictures need."""
    command = COMMANDS["train"]
    parser = build_parser(command.load(), "mmdit train", command.positional, command.config)
    recipe = parser.instantiate(parser.parse_args(["--config", str(RECIPE)]))
    ours = subject_lora_config("scenes64", "sample", Path("data"), Path("latents"), Preparation(), "cpu")
    theirs = {name: value for name, value in vars(recipe).items() if name in asdict(ours)}
    differing = {
        f"{section}.{key}"
        for section, value in asdict(ours).items()
        if isinstance(value, dict) and section != "prompts"
        for key in value
        if asdict(theirs[section])[key] != value[key]
    }
    assert differing == {
        *("data.path", "data.batch_size", "task.mixture", "preview.num_samples"),
        *("trainer.max_steps", "trainer.checkpoint_every", "trainer.accelerator"),
    }
    assert (ours.prompts.path, ours.prompts.text_encoder, ours.prompts.max_subjects) == ("data", None, 0)
