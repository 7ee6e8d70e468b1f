"""Where a labeller comes from: a local folder or the Hub; which kind it is, which revision, under which licence."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.errors import UserError, nearest_names
from mmdit.hub import fetch, is_hub_id
from mmdit.storage.digests import digest_files
from mmdit.storage.json_object import read_object
from mmdit.storage.listing import visible

DESCRIPTIONS = ("model_index.json", "config.json")  # of a diffusers pipeline, of a transformers model
CARD = "README.md"
UNKNOWN_LICENCE = "unknown"
MAX_LISTED = 12  # kinds in a message


@dataclass(frozen=True)
class ModelSource:
    """A folder of weights.

    ``name``: as the user gave it; ``kind``: ``_class_name`` of a diffusers pipeline or ``model_type`` of a transformers
    model; ``revision``: the Hub's commit, or "sha256:…" of a local folder's weights; ``licence``: as its card has it.
    """

    name: str
    folder: Path
    kind: str
    revision: str
    licence: str

    @property
    def non_commercial(self) -> bool:
        """Whether the licence excludes commercial use."""
        return "nc" in re.split(r"[^a-z]+", self.licence.lower())


def find_source(name: str, option: str, kinds: Collection[str]) -> ModelSource:
    """Find a model, fetching it from the Hub unless it is a local folder.

    Args:
        name: folder, or Hub id "owner/name".
        option: the option that named it, for messages.
        kinds: those that can be used; nothing large is fetched of any other.

    Raises:
        UserError: neither a folder nor a Hub id; the Hub can't be reached and holds no copy here; another kind.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        folder, revision = local, None
    elif is_hub_id(name):
        folder = _fetch(name, option, [*DESCRIPTIONS, CARD])
        revision = folder.name  # snapshots/<commit>
    else:
        raise UserError(f"{option} {name!r}: no such folder, and no Hub id such as 'owner/name'")
    kind, config = _read_kind(folder, name, option)
    if kind not in kinds:
        known = sorted(kinds)
        listed = ", ".join(known if len(known) <= MAX_LISTED else [*nearest_names(kind, known, 5), "…"])
        raise UserError(f"{option} {name!r} is a {kind!r}, which gives no such labels here; known are {listed}")
    if revision is not None:
        folder = _fetch(name, option, ["*.json", "*.jinja", "*.txt", "*.safetensors"], revision)
    elif local.parent.name == "snapshots":
        revision = local.name
    return ModelSource(
        name,
        folder,
        kind,
        revision or f"sha256:{digest_files(local, visible(local.rglob('*.safetensors')))[:32]}",
        _licence(folder, kind, config),
    )


def _fetch(name: str, option: str, patterns: list[str], revision: str | None = None) -> Path:
    needs = f"{' or '.join(DESCRIPTIONS)}, the *.json and *.safetensors beside it"
    return fetch(name, option, patterns, needs=needs, revision=revision)


def _read_kind(folder: Path, name: str, option: str) -> tuple[str, dict[str, Any]]:
    for description, key in zip(DESCRIPTIONS, ("_class_name", "model_type"), strict=True):
        path = folder / description
        if path.is_file():
            try:
                config = read_object(path)
                return config.field(key, str), config
            except UserError as error:
                raise UserError(f"{option} {name!r}: {error}") from None
    raise UserError(f"{option} {name!r}: the folder has neither {' nor '.join(DESCRIPTIONS)}")


def _licence(folder: Path, kind: str, config: dict[str, Any]) -> str:
    """As the card's metadata says; Depth Anything V2 is known by its size, because a bare folder of it has no card."""
    card = folder / CARD
    if card.is_file():
        head = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
        found = dict(re.findall(r"^(license|license_name):\s*[\"']?([^\"'\n]+)", head.group(1), re.M)) if head else {}
        if "license" in found:
            name = found["license"].strip()
            return found.get("license_name", name).strip() if name == "other" else name
    if kind == "depth_anything":
        width = (config.get("backbone_config") or {}).get("hidden_size")
        if width == 384:
            return "apache-2.0"
        if width in (768, 1024, 1536):
            return "cc-by-nc-4.0"
    return UNKNOWN_LICENCE
