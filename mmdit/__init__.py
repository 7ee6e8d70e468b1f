"""One diffusion transformer for images, their geometry and their semantics.

Public names are imported when they are first used (PEP 562), so ``import mmdit`` alone is cheap.
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"]:  # `python -m` still looks for its module, in the working directory first
    from mmdit.cli.search_path import leave_working_directory, runs_this_package

    if runs_this_package():
        leave_working_directory()
    del leave_working_directory, runs_this_package

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdit.conditioning import Conditioning
    from mmdit.encoders.codec import LatentCodec
    from mmdit.errors import UserError
    from mmdit.flow.schedulers import EulerMaruyamaScheduler, make_scheduler
    from mmdit.modalities.depth_values import invert_depth
    from mmdit.modalities.modality import Modality
    from mmdit.modalities.table import MODALITIES
    from mmdit.models.config import SIZES
    from mmdit.models.transformer import MultimodalDiT, MultimodalDiTOutput
    from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
    from mmdit.pipelines.pipeline_output import MultimodalDiTPipelineOutput
    from mmdit.task import Role, TaskMixture

__all__ = [
    "MODALITIES",
    "SIZES",
    "Conditioning",
    "EulerMaruyamaScheduler",
    "LatentCodec",
    "Modality",
    "MultimodalDiT",
    "MultimodalDiTOutput",
    "MultimodalDiTPipeline",
    "MultimodalDiTPipelineOutput",
    "Role",
    "TaskMixture",
    "UserError",
    "invert_depth",
    "make_scheduler",
]

_MODULES = {
    "mmdit.conditioning": ["Conditioning"],
    "mmdit.errors": ["UserError"],
    "mmdit.flow.schedulers": ["EulerMaruyamaScheduler", "make_scheduler"],
    "mmdit.encoders.codec": ["LatentCodec"],
    "mmdit.modalities.depth_values": ["invert_depth"],
    "mmdit.modalities.modality": ["Modality"],
    "mmdit.modalities.table": ["MODALITIES"],
    "mmdit.models.config": ["SIZES"],
    "mmdit.models.transformer": ["MultimodalDiT", "MultimodalDiTOutput"],
    "mmdit.pipelines.pipeline_multimodal_dit": ["MultimodalDiTPipeline"],
    "mmdit.pipelines.pipeline_output": ["MultimodalDiTPipelineOutput"],
    "mmdit.task": ["Role", "TaskMixture"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("multimodal-dit")
        except PackageNotFoundError:
            return "0+unknown"
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'mmdit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
