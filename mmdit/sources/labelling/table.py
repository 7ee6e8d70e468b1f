"""Which class runs which kind of model, and the models that are used where none is named."""

from __future__ import annotations

from collections.abc import Callable

from mmdit.errors import UserError
from mmdit.sources.labelling.depth import DepthAnythingLabeller, MarigoldDepthLabeller
from mmdit.sources.labelling.labeller import Labeller
from mmdit.sources.labelling.normal import MarigoldNormalsLabeller
from mmdit.sources.labelling.segmentation import MaskGenerationLabeller, UniversalSegmentationLabeller
from mmdit.sources.labelling.settings import LabellerSettings
from mmdit.sources.labelling.source import UNKNOWN_LICENCE, ModelSource, find_source

# DSINE and Lotus have loaders in neither transformers nor diffusers: what they need is their authors' code.
LABELLERS: dict[str, dict[str, type[Labeller]]] = {
    "depth": {"depth_anything": DepthAnythingLabeller, "MarigoldDepthPipeline": MarigoldDepthLabeller},
    "normal": {"MarigoldNormalsPipeline": MarigoldNormalsLabeller},
    "segmentation": {
        **dict.fromkeys(("sam", "sam2", "sam2_video", "sam_hq"), MaskGenerationLabeller),
        **dict.fromkeys(("maskformer", "mask2former", "oneformer"), UniversalSegmentationLabeller),
    },
}


def load_labellers(
    models: dict[str, str],
    settings: LabellerSettings | None = None,
    say: Callable[[str], None] = print,
) -> list[Labeller]:
    """Load labellers, saying first which model each is and under which licence.

    Args:
        models: modality -> folder or Hub id.
        settings: how they run.
        say: where the lines about the models go.

    Raises:
        UserError: a model that is missing, can't be fetched or loaded, or gives another modality.
    """
    if not models:
        raise UserError("nothing to label: --depth, --normal and --segmentation are all 'none'")
    sources = {name: find_source(model, f"--{name}", LABELLERS[name]) for name, model in models.items()}
    for name, source in sources.items():
        say(introduction(name, source))
    return [LABELLERS[name][source.kind](source, settings or LabellerSettings()) for name, source in sources.items()]


def introduction(name: str, source: ModelSource) -> str:
    """Return the line that says which model is used for ``name``, and under which licence."""
    text = f"{name}: {source.name}, revision {source.revision}, licence {source.licence}"
    if source.non_commercial:
        label = source.licence.upper().replace("CC-BY-NC", "CC BY-NC")
        return f"{text}. {label} is not for commercial use, which may hold for the labels and what learns from them too"
    if source.licence == UNKNOWN_LICENCE:
        return f"{text}: its folder doesn't say; look it up before the labels are passed on"
    return text
