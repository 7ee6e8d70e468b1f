"""Mitsuba 3, the renderer, as the scenes use it."""

from __future__ import annotations

from typing import Any


def load_mitsuba() -> Any:
    """Return the module, with its variant set. Raises ImportError that names the extra."""
    try:
        import mitsuba
    except ImportError as error:
        raise ImportError("rendering scenes needs mitsuba and trimesh: pip install 'multimodal-dit[scenes]'") from error
    if mitsuba.variant() != "scalar_rgb":
        mitsuba.set_variant("scalar_rgb")
        # It warns of normals that it computes for thin faces, in whose place ours are set.
        mitsuba.set_log_level(mitsuba.LogLevel.Error)
    return mitsuba


def limit_render_threads(count: int) -> None:
    """Let Mitsuba use `count` threads in this process."""
    load_mitsuba()
    import drjit

    # The calling thread is one of them.
    drjit.set_thread_count(max(0, count - 1))
