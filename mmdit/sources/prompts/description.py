"""What ``dataset.json`` says of a split's prompts; one split never mixes two pipelines, models or settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmdit.data.prompts import PROMPTS
from mmdit.data.prompts_writer import FOLDER
from mmdit.data.writer import write_description
from mmdit.errors import UserError
from mmdit.names import DATASET
from mmdit.sources.labelling.description import VERSIONED, prompts_licence
from mmdit.sources.prompts.pipeline import PromptPipeline
from mmdit.storage.digests import digest_file
from mmdit.storage.json_object import read_object
from mmdit.storage.names import text_of
from mmdit.storage.requests import Request
from mmdit.storage.versions import version_of

GENERATOR = "mmdit data prompts"
# Raised when the same image, captions and models give other prompts.
GENERATOR_VERSION = 1
_SEPARATOR = "; "


def describe(root: Path, split: str, pipeline: PromptPipeline, captions: str | None) -> tuple[dict[str, Any], bool]:
    """Return ``dataset.json`` for prompts that are about to be made, and whether some of them are there already.

    Args:
        root: the dataset.
        split: that the prompts are of.
        pipeline: that makes them.
        captions: where captions come from, as the user gave it.

    Raises:
        UserError: what is there was made with other models or settings.
    """
    values = dict(read_object(root / DATASET))
    old = values.get("provenance")
    provenance = dict(old) if isinstance(old, dict) else {} if old is None else {"description": old}
    splits = provenance.get("prompts")
    splits = dict(splits) if isinstance(splits, dict) else {}
    ours: dict[str, Any] = {
        "generator": GENERATOR,
        "generator_version": GENERATOR_VERSION,
        "pipeline": pipeline.name,
        "captions": None if captions is None else text_of(captions),
        "settings": pipeline.facts(),
        "networks": {name: network.provenance() for name, network in pipeline.networks.items()},
    }
    folder = root / split
    there = (folder / FOLDER).is_dir() or (folder / PROMPTS).is_file()
    theirs = splits.get(split) if there else None
    if isinstance(theirs, dict):
        remedy = f"give the same, or delete {FOLDER}/ and {PROMPTS} there to begin anew"
        flat = _flat(ours)
        # A captioner writes what is missing: it may be named later.
        later = [name for name in flat if name.startswith("networks.captioner.")]
        Request(flat, optional=later).refuse_other(_flat(theirs), folder, "prompts", remedy)
        ours["networks"] = {**theirs.get("networks", {}), **ours["networks"]}
        ours["sha256"] = theirs.get("sha256")
    ours["versions"] = {name: version_of(name) for name in VERSIONED}
    splits[split] = ours
    values["provenance"] = {**provenance, "prompts": splits}
    parts = [part for part in str(values.get("licence") or "").split(_SEPARATOR) if part]
    kept = [part for part in parts if not part.startswith(prompts_licence({}))]
    values["licence"] = _SEPARATOR.join([*kept, prompts_licence(splits)])
    return values, isinstance(theirs, dict)


def save_description(root: Path, values: Mapping[str, Any]) -> None:
    """Write it, if it says anything new."""
    if dict(read_object(root / DATASET)) != values:
        write_description(root, values)


def record_written(root: Path, split: str, values: dict[str, Any]) -> None:
    """Record the digest of the prompts.jsonl that has just been written, by which one that was edited is known."""
    values["provenance"]["prompts"][split]["sha256"] = digest_file(root / split / PROMPTS)
    save_description(root, values)


def refuse_edited(root: Path, split: str, values: Mapping[str, Any], digest: Callable[[], str]) -> None:
    """Raise UserError if prompts.jsonl is not what this command wrote.

    ``digest`` is of what it would write now of what is stored: a run may have been killed before it recorded what it wrote.
    """
    path = root / split / PROMPTS
    if not path.is_file():
        return
    found = digest_file(path)
    if found != values["provenance"]["prompts"][split].get("sha256") and found != digest():
        raise UserError(
            f"{path}: was changed since it was made, and would be overwritten: change the captions where they come from, or "
            f"rename the file to prompts.given.jsonl and delete {FOLDER}/ beside it to make the entities of its captions anew"
        )


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested records as one, "networks.detector.model" and so on, so that a difference is named by its own name."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key in ("versions", "sha256"):
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
            if key == "networks":
                flat[key] = sorted(name for name in value if name != "captioner")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
