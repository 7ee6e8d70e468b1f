"""What a call edits of a given picture: a region, or all modalities but those that are kept, and how far it may go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from mmdit.errors import UserError, unknown_name
from mmdit.pipelines.region import Region, read_region


@dataclass(frozen=True)
class Edit:
    """A request to change a picture that is given.

    Args:
        mask: of what is generated anew, not read yet; None = everywhere.
        keep: modalities that stay as they are, everywhere.
        strength: from 0, the picture as it is, to 1, which starts from pure noise.
    """

    mask: Any
    keep: frozenset[str]
    strength: float

    @property
    def asked_by(self) -> str:
        """The argument that asked for it, for messages."""
        return "keep" if self.mask is None else "mask"

    @property
    def needs_all(self) -> bool:
        """Whether every modality of the picture is used, given or estimated; else those that are kept are."""
        return self.mask is not None or self.strength < 1

    def region(self, height: int, width: int) -> Region | None:
        """The region at the size of the output; None = everywhere. Raises UserError for a bad mask."""
        return None if self.mask is None else read_region(self.mask, height, width)


def read_edit(mask: Any, keep: Any, strength: Any, modalities: Collection[str]) -> Edit | None:
    """Judge what a call says of an edit; None = it asks for none.

    Args:
        mask: see ``read_region``.
        keep: names of modalities, or one name; None = none.
        strength: see ``Edit``.
        modalities: of the model.

    Raises:
        UserError: a strength outside [0, 1] or beside no picture to edit, unknown names, or nothing to generate.
    """
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 <= float(strength) <= 1:
        raise UserError(f"strength is {strength!r}: give a number from 0 (nothing changes) to 1 (from pure noise)")
    if mask is None and keep is None:
        if strength != 1:
            raise UserError(
                f"strength is {strength}, and no picture is edited: give mask, or keep, the modalities that stay as they are "
                "([] = none, as in image-to-image)"
            )
        return None
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
    return Edit(mask, frozenset(names), float(strength))
