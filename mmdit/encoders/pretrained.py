"""Frozen models of transformers by folder or Hub id: whole, finite, and nothing else of them is read or run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmdit.errors import UserError, one_line
from mmdit.hub import fetch, is_hub_id
from mmdit.storage.transformers_folder import check_model
from mmdit.storage.weights import refuse_non_finite

_PATTERNS = ("*.json", "*.txt", "*.jinja", "*.safetensors")
_NEEDS = "config.json, *.safetensors, and the tokenizer's or the image processor's *.json"


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder of transformers.

    ``config``: of its model; ``title``: what messages call it, "text encoder 'owner/name'".
    """

    folder: Path
    config: Mapping[str, Any]
    title: str

    @classmethod
    def find(cls, name: str, what: str) -> PretrainedFolder:
        """Find a local folder, or fetch a Hub id; ``what``: for messages.

        Raises:
            UserError: no such folder; the Hub can't be reached and its cache lacks it; files that are missing or damaged,
                or that name code.
        """
        local, title = Path(name).expanduser(), f"{what} {name!r}"
        if local.is_dir():
            folder = local
        elif is_hub_id(name):
            folder = fetch(name, what, _PATTERNS, needs=_NEEDS)
        else:
            raise UserError(f"{title} can't be loaded: no such folder, and no Hub id such as 'owner/name'")
        try:
            return cls(folder, check_model(folder), title)
        except UserError as error:
            raise UserError(f"{title} can't be loaded: {error}") from None

    def load(self, cls: Any) -> Any:
        """Load a tokenizer or processor. Raises UserError where it can't be."""
        try:
            with quiet():
                return cls.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a folder is data: whatever it makes the library raise is about it
            raise UserError(f"{self.title} can't be loaded: {one_line(error)}") from error

    def load_model(
        self, cls: Any, dtype: torch.dtype = torch.float32, variant: str | None = None, *, alone: bool = False
    ) -> Any:
        """Load a model, frozen. It may be a part of a larger one, as CLIP's towers are, unless ``alone``.

        Raises:
            UserError: weights that are missing, damaged, of another size, NaN or infinite, or with ``alone`` left over.
        """
        try:
            with quiet():
                model, info = cls.from_pretrained(
                    self.folder,
                    dtype=dtype,
                    use_safetensors=True,
                    output_loading_info=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    **({"variant": variant} if variant is not None else {}),
                )
        except Exception as error:
            raise UserError(f"{self.title} can't be loaded: {one_line(error)}") from error
        for key, what in (("missing_keys", "lack"), ("unexpected_keys", "hold besides")):
            names = sorted(info[key])
            if names and (alone or key == "missing_keys"):
                raise UserError(f"{self.title}: its weights {what} {len(names)} tensors, first {names[0]!r}")
        refuse_non_finite(model, self.title)
        return model.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, and its tables of the weights that a part of a model leaves out."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
