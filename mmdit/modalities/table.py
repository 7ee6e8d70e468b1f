"""The modalities. A new one is an entry here, and a new codec where none of these fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.codec import CODECS, Codec
from mmdit.modalities.depth import DepthCodec
from mmdit.modalities.modality import Modality
from mmdit.modalities.normal import NormalCodec
from mmdit.modalities.rgb import RGBCodec
from mmdit.modalities.segmentation import SegmentationCodec

__all__ = [
    "CODECS",
    "IMAGE",
    "MODALITIES",
    "DepthCodec",
    "NormalCodec",
    "RGBCodec",
    "SegmentationCodec",
    "build_codec",
    "build_codecs",
    "get_modalities",
]

# The modality that is understood, judged by feature networks, and seen by teachers.
IMAGE = "rgb"

# Loss weights: MMGen (arXiv 2503.20644). Order: the order of the channels in its checkpoints.
MODALITIES: dict[str, Modality] = {
    IMAGE: Modality(IMAGE, codec="rgb", loss_weight=1.0),
    "depth": Modality(
        "depth", codec="depth", loss_weight=0.2, settings={"space": "disparity", "quantiles": [0.02, 0.98]}
    ),
    "normal": Modality("normal", codec="normal", loss_weight=0.1),
    "segmentation": Modality("segmentation", codec="segmentation", loss_weight=0.1, settings={"classes": None}),
}


def get_modalities(names: Iterable[str]) -> dict[str, Modality]:
    """Look names up in ``MODALITIES``, keeping their order. Raises UserError for an unknown name."""
    chosen = {}
    for name in names:
        if name not in MODALITIES:
            raise unknown_name("modality", name, MODALITIES)
        chosen[name] = MODALITIES[name]
    return chosen


def ordered_modalities(names: Sequence[str], modalities: Mapping[str, Any] | None) -> dict[str, Modality]:
    """Modalities, or their ``to_dict()``, by name, in the order of ``names``: JSON sorts the keys of a saved config.

    None = those of ``MODALITIES``. Raises UserError for other names, or for none of an unknown name.
    """
    if modalities is None:
        return get_modalities(names)
    if set(modalities) != set(names):
        raise UserError(f"modalities are {', '.join(modalities)}: the transformer has {', '.join(names)}")
    return {
        name: modalities[name] if isinstance(modalities[name], Modality) else Modality.from_dict(modalities[name])
        for name in names
    }


def codec_class(modality: Modality) -> type[Codec]:
    """Return the class of a modality's codec. Raises UserError for an unknown one."""
    if modality.codec not in CODECS:
        raise unknown_name("codec", modality.codec, CODECS)
    return CODECS[modality.codec]


def build_codec(modality: Modality) -> Codec:
    """Build the codec that a modality names, with its settings; UserError for an unknown codec or setting."""
    try:
        codec = codec_class(modality)(**modality.settings)
    except UserError as error:
        raise UserError(f"modality {modality.name!r}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"modality {modality.name!r}: settings {dict(modality.settings)} do not fit its codec: {error}"
        ) from None
    codec.name = modality.name
    return codec


def build_codecs(modalities: Mapping[str, Modality]) -> dict[str, Codec]:
    """Build the codecs of several modalities, by name."""
    return {name: build_codec(modality) for name, modality in modalities.items()}
