"""What the files of one modality are to an import: how they are stored, and what ``dataset.json`` says of them; ``KINDS``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.modalities import build_codec, get_modalities
from mmdit.modalities.modality import Modality
from mmdit.modalities.table import codec_class
from mmdit.sources.folders.depth_kind import depth_kind
from mmdit.sources.folders.storing import AsItIs
from mmdit.storage.requests import Request

_UNNAMED = "; --classes names others than 0 to 63"


@dataclass(frozen=True)
class FolderOptions:
    """What the user says of the files.

    Args:
        depth_values, depth_scale: what depth files hold (``mmdit.sources.folders.depth_kind``).
        classes: of the segmentation, as in dataset.json; None = labels 0 to 63 without names.
    """

    depth_values: str = "auto"
    depth_scale: float = 0.001
    classes: Sequence[Mapping[str, Any]] | None = None


class ImportedFiles:
    """Files that are copied, and of which ``dataset.json`` says nothing.

    Args:
        modality: theirs.
        paths: of all.
        options: what the user says of them.

    Attributes:
        note: what the user is told of them; "" = nothing.
    """

    note = ""

    def __init__(self, modality: Modality, paths: Sequence[str], options: FolderOptions) -> None:
        self.modality, self.options = modality, options

    def store(self) -> AsItIs:
        """How a file becomes the dataset's."""
        return AsItIs(build_codec(self.modality))

    def describe(self, values: dict[str, Any], labels: dict[str, Any], root: Path, *, had: bool) -> None:
        """Add to ``dataset.json``.

        Args:
            values: entries of its own, as other splits left them.
            labels: entries of its provenance, by modality.
            root: of the dataset, for messages.
            had: whether other splits, or this one before, have files of the modality.

        Raises:
            UserError: the files there are of another kind.
        """


class LabelFiles(ImportedFiles):
    """Label ids, whose classes the user may name."""

    def store(self) -> AsItIs:
        settings = codec_class(self.modality).dataset_settings({"segmentation_classes": self.options.classes})
        return AsItIs(build_codec(self.modality.replace(**settings)), hint="" if settings else _UNNAMED)

    def describe(self, values: dict[str, Any], labels: dict[str, Any], root: Path, *, had: bool) -> None:
        classes = self.options.classes
        given = None if classes is None else [dict(entry) for entry in classes]
        if had:
            asked = {"segmentation_classes": given}
            Request(asked).refuse_other({"segmentation_classes": values.get("segmentation_classes")}, root, "labels")
        if given is not None:
            values["segmentation_classes"] = given


class DepthFiles(ImportedFiles):
    """Distances, or depth up to scale and shift: asked for where files don't tell. Raises UserError as ``depth_kind``."""

    def __init__(self, modality: Modality, paths: Sequence[str], options: FolderOptions) -> None:
        super().__init__(modality, paths, options)
        self.kind = depth_kind(paths, options.depth_values, options.depth_scale)
        self.note = self.kind.note

    def store(self) -> AsItIs:
        return self.kind.store()

    def describe(self, values: dict[str, Any], labels: dict[str, Any], root: Path, *, had: bool) -> None:
        name, facts, scale = self.modality.name, self.kind.facts(), self.kind.scale
        if name in labels:
            before = {**labels[name], "depth_scale": values.get("depth_scale")}
            Request({**facts, "depth_scale": scale}).refuse_other(before, root, "depth")
        values["depth_scale"], labels[name] = scale, facts


# codec -> what its files are; others are copied
KINDS: dict[str, type[ImportedFiles]] = {"depth": DepthFiles, "segmentation": LabelFiles}


def imported_files(paths: Mapping[str, Sequence[str]], options: FolderOptions) -> dict[str, ImportedFiles]:
    """Modality -> what its files are; UserError for an unknown modality, and for files that a kind refuses."""
    return {
        name: KINDS.get(modality.codec, ImportedFiles)(modality, paths[name], options)
        for name, modality in get_modalities(paths).items()
    }
