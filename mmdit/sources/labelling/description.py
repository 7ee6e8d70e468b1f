"""What ``dataset.json`` says of labelled images; one folder never mixes two labellers of a modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdit.data.writer import read_description, write_description
from mmdit.errors import UserError
from mmdit.modalities import IMAGE, MODALITIES
from mmdit.sources.labelling.labeller import Labeller
from mmdit.sources.labelling.source import UNKNOWN_LICENCE
from mmdit.storage.names import text_of
from mmdit.storage.requests import Request
from mmdit.storage.versions import version_of

GENERATOR = "mmdit data label"
# Raised when the same image and labeller give other files.
GENERATOR_VERSION = 1
VERSIONED = ("torch", "transformers", "diffusers")


def describe(
    root: Path,
    split: str,
    *,
    images: str,
    licence: str,
    categories: Iterable[str],
    size: int | tuple[int, int] | None,
    labellers: Sequence[Labeller],
) -> dict[str, Any]:
    """Return ``dataset.json`` for labels that are about to be added to a folder, which may hold some already.

    Args:
        root: the dataset.
        split: the split they are added to.
        images: where its images come from.
        licence: of the images; "unknown" leaves the one that is there.
        categories: of the images; those that are new are added after the ones that are there.
        size: of the images, None = their own.
        labellers: of the modalities to add.

    Raises:
        UserError: what is there was not made by this command, or with another size or another labeller, or the split of
            other images.
    """
    images = text_of(images)
    old = read_description(root) or {"provenance": {}}
    provenance = old["provenance"]
    settings = {"generator": GENERATOR, "generator_version": GENERATOR_VERSION, "size": size}
    if provenance:
        Request(settings).refuse_other(provenance, root, "labels")
    labels: dict[str, dict[str, Any]] = dict(provenance.get("labels", {}))
    for labeller in labellers:
        ours, theirs = labeller.provenance(), labels.get(labeller.modality)
        if theirs is not None:
            remedy = "give the same, or choose another --output"
            Request(ours).refuse_other(theirs, root, f"{labeller.modality} labels", remedy)
        labels[labeller.modality] = ours
    sources = dict(provenance.get("images", {}))
    before = sources.get(split, {"folder": images, "licence": licence})
    if before["folder"] != images and Path(before["folder"]).resolve() != Path(images).resolve():
        raise UserError(
            f"{root}: the split {split!r} holds images of {before['folder']!r}, not {images!r}, and the same name would be "
            "another image: give another --split or --output (or, if that folder has moved, its new place in dataset.json)"
        )
    sources[split] = {"folder": images, "licence": before["licence"] if licence == UNKNOWN_LICENCE else licence}
    known = list(old.get("categories", []))
    values: dict[str, Any] = {
        "modalities": [name for name in MODALITIES if name == IMAGE or name in labels],
        "categories": known + sorted(set(categories) - set(known)),
        **{key: old[key] for key in ("segmentation_classes", "depth_scale") if key in old},
    }
    for labeller in labellers:
        if labeller.classes is not None:
            values["segmentation_classes"] = labeller.classes
        if labeller.depth_scale is not None:
            values["depth_scale"] = labeller.depth_scale
    images_licences = ", ".join(dict.fromkeys(source["licence"] for source in sources.values()))
    values["licence"] = "; ".join(
        [f"images {images_licences}", *(f"{name} labels by a model under {labels[name]['licence']}" for name in labels)]
        + ([prompts_licence(provenance["prompts"])] if "prompts" in provenance else [])
    )
    values["provenance"] = {
        **settings,
        "images": sources,
        "labels": labels,
        "versions": {name: version_of(name) for name in VERSIONED},
        **{key: provenance[key] for key in ("prompts",) if key in provenance},
    }
    return values


def prompts_licence(splits: Mapping[str, Any]) -> str:
    """What a dataset's licence says of its prompts: those of the models that made them. ``splits``: the record of each."""
    networks = [network for split in splits.values() for network in split["networks"].values()]
    return "prompts by models under " + ", ".join(dict.fromkeys(network["licence"] for network in networks))


def save_description(root: Path, values: Mapping[str, Any]) -> None:
    """Write it, if it says anything new: many processes may find the folder, one writes."""
    if read_description(root) != values:
        write_description(root, values)
