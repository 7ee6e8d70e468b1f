"""Mitsuba 3, the renderer, as the scenes use it."""

from __future__ import annotations

from typing import Any

import numpy as np


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


def read_radiance(file: str, max_pixels: int) -> np.ndarray:
    """Read an .exr or .hdr, float32 (H, W, 3). Raises ValueError for more pixels, and whatever the readers raise."""
    mi = load_mitsuba()
    import drjit

    count = drjit.thread_count()
    # The reader of EXR waits for ever for another thread where there is none.
    drjit.set_thread_count(max(2, count))
    try:
        bitmap = mi.Bitmap(file)
        if bitmap.size()[0] * bitmap.size()[1] > max_pixels:
            raise ValueError(f"it has more than {max_pixels} pixels: give a smaller one")
        return np.array(bitmap.convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float32, srgb_gamma=False))
    finally:
        drjit.set_thread_count(count)


def limit_render_threads(count: int) -> None:
    """Let Mitsuba use `count` threads in this process."""
    load_mitsuba()
    import drjit

    # The calling thread is one of them.
    drjit.set_thread_count(max(0, count - 1))
