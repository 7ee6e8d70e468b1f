"""``mmdit evaluate-captioner``: what a captioner of recipe "captioner" says of scenes."""

from __future__ import annotations

from pathlib import Path

from mmdit.bounds import PositiveInt, Seed
from mmdit.errors import UserError


def evaluate_captioner(
    model: Path,
    data: Path,
    output: Path,
    split: str = "val",
    num_samples: PositiveInt | None = None,
    seed: Seed = 0,
    device: str = "auto",
) -> None:
    """Measure what a captioner says of rendered scenes.

    Writes as JSON the shares of answers to questions (colours, relations), of captions and of prompts read out from their
    pictures that are right, each beside the same with the picture of another scene.

    Args:
        model: Folder of a captioner, as recipe captioner writes it.
        data: Dataset folder of scenes with captions; see mmdit data render.
        output: The report, a JSON file; it is replaced.
        split: Of the data; not the one it was trained on.
        num_samples: The first so many scenes; by default all.
        seed: Of the prompts that are drawn.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    if output.is_dir():
        raise UserError(f"{output}: is a folder; --output is the report's file, such as {output / 'captioner.json'}")
    if not data.is_dir():
        raise UserError(f"{data}: no such dataset folder")
    from mmdit.cli.common.model import choose_device
    from mmdit.cli.common.output import prepare_file
    from mmdit.data.instructions import Instructions
    from mmdit.encoders.captioner import load_captioner
    from mmdit.metrics.captions import CaptionerEvaluation
    from mmdit.sources.scenes.layout import CATEGORY_NAMES
    from mmdit.sources.scenes.questions import COLOURS, kind_of, questions
    from mmdit.storage.json_object import write_json
    from mmdit.storage.versions import versions

    prepare_file(output)
    network, processor = load_captioner(str(model))
    evaluation = CaptionerEvaluation(
        network.to(choose_device(device)),
        processor,
        Instructions(data, split, questions, seed=seed),
        kind_of=kind_of,
        nouns=CATEGORY_NAMES,
        colours=sorted(COLOURS),
    )
    report = evaluation.compute(num_samples, seed=seed)
    settings = {
        "model": str(model),
        "data": str(data),
        "split": split,
        "num_samples": num_samples,
        "seed": seed,
        "versions": versions(),
    }
    write_json(output, {**report, "settings": settings})
    for name, values in report["captioner"].items():
        control = report["controls"]["shuffled"].get(name)
        other = f"; with another's picture {control['right']:.3f}" if control else ""
        print(f"{name}: {values['right']:.3f} of {values['count']}{other}")
    print(output)
