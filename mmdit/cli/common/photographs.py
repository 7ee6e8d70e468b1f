"""Says when a model that never saw a photograph is to understand one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmdit.cli.common.inputs import real_path
from mmdit.data.description import is_rendered
from mmdit.errors import UserError
from mmdit.names import DATASET
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.json_object import read_object


def about_photographs(pipe: MultimodalDiTPipeline, model: str, paths: Sequence[Path]) -> list[str]:
    """A note that the model never saw photographs, if its card says so and not all pictures are rendered scenes."""
    if pipe.photographs is False and not all(map(_is_rendered, paths)):
        return [
            f"model {model!r} was trained on rendered scenes and never saw a photograph: what it makes of one is a guess; "
            "--model takes one that was trained on photographs"
        ]
    return []


def _is_rendered(path: Path) -> bool:
    """Whether a picture lies in a dataset, ROOT/SPLIT/rgb/FILE, that ``mmdit data render`` made."""
    places = real_path(path).parents
    if len(places) < 3 or not (places[2] / DATASET).is_file():
        return False
    try:
        return is_rendered(read_object(places[2] / DATASET).get("provenance"))
    except UserError:
        return False
