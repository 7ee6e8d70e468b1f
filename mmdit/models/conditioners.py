"""Conditioners: modules that turn a prompt into ``Conditioning``, chosen by name from ``CONDITIONERS``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdit.conditioning import Conditioner
from mmdit.errors import UserError, unknown_name
from mmdit.models.class_conditioner import ClassConditioner
from mmdit.models.interleaved import InterleavedConditioner
from mmdit.models.tiue import TIUEConditioner

__all__ = ["CONDITIONERS", "ClassConditioner", "InterleavedConditioner", "TIUEConditioner", "make_conditioner"]

CONDITIONERS: dict[str, type[Conditioner]] = {
    "class": ClassConditioner,
    "tiue": TIUEConditioner,
    "interleaved": InterleavedConditioner,
}


def make_conditioner(
    name: str, num_classes: int, hidden_size: int, dropout_prob: float, settings: Mapping[str, Any] | None = None
) -> Conditioner:
    """Build a conditioner from ``CONDITIONERS``. Raises UserError for an unknown name or a setting it doesn't have."""
    if name not in CONDITIONERS:
        raise unknown_name("conditioner", name, CONDITIONERS)
    common = {"num_classes": num_classes, "hidden_size": hidden_size, "dropout_prob": dropout_prob}
    try:
        return CONDITIONERS[name](**common, **(settings or {}))
    except TypeError as error:
        raise UserError(f"conditioner {name!r} does not take conditioner_settings {settings}: {error}") from error
