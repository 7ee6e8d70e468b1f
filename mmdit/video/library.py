"""PyAV, FFmpeg's libraries for Python (extra ``video``)."""

from __future__ import annotations

from typing import Any

from mmdit.errors import UserError


def load_av(where: object) -> Any:
    """Return the module. Raises UserError that names the extra, and ``where`` it is needed."""
    try:
        import av
    except ImportError:
        raise UserError(f"{where}: videos need a library: pip install 'multimodal-dit[video]'") from None
    return av  # which is silent: told to log, it can wait for ever for the threads that decode
