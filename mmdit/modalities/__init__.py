"""The kinds of images that a model generates or reads: a table of records, and one codec class for each kind.

Names are imported when they are first used, so that the package itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdit.modalities.codec import Codec
    from mmdit.modalities.modality import Modality
    from mmdit.modalities.reading import Reading
    from mmdit.modalities.table import CODECS, IMAGE, MODALITIES, build_codec, build_codecs, get_modalities

__all__ = [
    "CODECS",
    "IMAGE",
    "MODALITIES",
    "Codec",
    "Modality",
    "Reading",
    "build_codec",
    "build_codecs",
    "get_modalities",
]

_MODULES = {"Codec": "codec", "Reading": "reading", "Modality": "modality"}


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'table')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
