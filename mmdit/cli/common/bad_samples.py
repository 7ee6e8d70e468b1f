"""How commands that make datasets end where some of the input can't be used."""

from __future__ import annotations

from collections.abc import Sequence

from mmdit.errors import UserError


def report_bad(bad: Sequence[object], kept: str, skip_bad: bool) -> int:
    """List what is bad, say what was kept, and return exit code 0. Raises UserError for any without ``skip_bad``."""
    for entry in bad:
        print(entry)
    if bad and not skip_bad:
        raise UserError(f"{len(bad)} problems, listed above ({kept}; the same command tries the others again)")
    print(kept)
    return 0
