"""What a call edits of a given picture: a region, or all modalities but those that are kept, and how far it may go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError, unknown_name
from mmdit.flow.guidance import is_number
from mmdit.flow.path import Given
from mmdit.pipelines.conditions import GivenImages
from mmdit.pipelines.region import Region, read_region
from mmdit.task import Role


@dataclass(frozen=True)
class Edit:
    """A request to change a picture that is given; as it is built without arguments, it asks for nothing.

    Args:
        mask: of what is generated anew, not read yet; None = everywhere.
        keep: modalities that stay as they are, everywhere.
        strength: from 0, the picture as it is, to 1, which starts from pure noise.
        asked_by: the argument that asked for it, for messages; None = no picture is edited.
        region: what the mask says at the size of the output, see ``at``; None = everywhere.
    """

    mask: Any = None
    keep: frozenset[str] = frozenset()
    strength: float = 1.0
    asked_by: str | None = None
    region: Region | None = None

    def at(self, height: int, width: int) -> Edit:
        """The same with its region at the size of the output. Raises UserError for a bad mask."""
        return self if self.mask is None else replace(self, region=read_region(self.mask, height, width))

    def used(self, modalities: Collection[str]) -> Collection[str]:
        """Modalities of the picture that it uses, given or estimated: all, or those that are kept."""
        return modalities if self.mask is not None or self.strength < 1 else self.keep

    def kept(self, given: GivenImages) -> GivenImages:
        """Images that are returned as they are given, everywhere."""
        return given if self.asked_by is None else given.only(self.keep)

    def pin(self, given: Given, roles: Tensor, codec: LatentCodec) -> tuple[Given, Tensor]:
        """What a sampler of B samples is given and keeps, and the roles (B, M) of the edited picture's modalities."""
        if self.asked_by is None:
            return given, roles
        kept = torch.tensor([name in self.keep for name in codec.modalities], device=roles.device)
        roles = torch.where(kept, int(Role.CONDITION), int(Role.GENERATE)).expand_as(roles)
        if self.region is None:
            return given, roles
        known = self.region.known(codec.downsampling).to(roles.device)  # (h, w)
        return replace(given, known=known.expand(*roles.shape, -1, -1)), roles


def read_edit(mask: Any, keep: Any, strength: Any, modalities: Collection[str]) -> Edit:
    """Judge what a call says of an edit.

    Args:
        mask: see ``read_region``.
        keep: names of modalities, or one name; None = none.
        strength: see ``Edit``.
        modalities: of the model.

    Raises:
        UserError: a strength outside [0, 1] or beside no picture to edit, unknown names, or nothing to generate.
    """
    if not is_number(strength) or not 0 <= float(strength) <= 1:
        raise UserError(f"strength is {strength!r}: give a number from 0 (nothing changes) to 1 (from pure noise)")
    if mask is None and keep is None:
        if strength != 1:
            raise UserError(
                f"strength is {strength}, and no picture is edited: give mask, or keep, the modalities that stay as they are "
                "([] = none, as in image-to-image)"
            )
        return Edit()
    names = [keep] if isinstance(keep, str) else list(keep or ()) if isinstance(keep, Sequence | None | set) else None
    if names is None:
        raise UserError(f"keep is a {type(keep).__name__}: give a list of modalities, of {', '.join(modalities)}")
    for name in names:
        if name not in modalities:
            raise unknown_name("modality in keep", name, modalities)
    if len(set(names)) == len(modalities):
        raise UserError(f"keep holds all modalities ({', '.join(modalities)}): leave out at least one to be generated")
    if mask is None and not names and strength == 1:
        raise UserError("keep is empty and strength is 1, which uses nothing of the picture: give a smaller strength")
    return Edit(mask, frozenset(names), float(strength), "keep" if mask is None else "mask")
