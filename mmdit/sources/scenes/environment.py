"""Light from all around: a picture of a place in high dynamic range, in equirectangular projection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmdit.errors import UserError, first_line
from mmdit.sources.scenes.renderer import read_radiance
from mmdit.storage.digests import digest_file

SUFFIXES = (".exr", ".hdr")
MAX_BYTES = 2**28
MAX_PIXELS = 2**26
WHITE = 0.9  # radiance of a white floor without anything on it


@dataclass(frozen=True)
class Environment:
    """file: path of an .hdr or .exr, whose top is up; turn: degrees about the vertical; digest: of the file's bytes."""

    file: str
    turn: float
    digest: str

    def emitter(self, mi: Any) -> dict[str, Any]:
        """The Mitsuba light, as bright as the sun and the other light of the scenes are together."""
        to_world = mi.ScalarTransform4f().rotate([0, 0, 1], self.turn) @ mi.ScalarTransform4f().rotate([1, 0, 0], 90)
        radiance, scale = _read(self.file, self.digest)
        return {"type": "envmap", "bitmap": mi.Bitmap(radiance), "scale": scale, "to_world": to_world}


def read_environment(path: Path) -> Environment:
    """Check a file of the user's. Raises UserError if it is no environment."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"hdri {path}: give an environment in high dynamic range, {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"hdri {path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(
            f"hdri {path}: has {path.stat().st_size} bytes, at most {MAX_BYTES} are read: give a smaller one"
        )
    digest = digest_file(path)
    _read(str(path), digest)
    return Environment(str(path), 0.0, digest)


@lru_cache(maxsize=1)
def _read(file: str, digest: str) -> tuple[np.ndarray, float]:
    """Radiance float32 (H, W, 3), and the factor after which a white floor has the radiance ``WHITE``."""
    try:
        if digest_file(Path(file)) != digest:
            raise UserError(f"hdri {file}: has changed since the rendering began")
        radiance = read_radiance(file, MAX_PIXELS)
    except UserError:
        raise
    except Exception as error:  # whatever the readers raise
        raise UserError(f"hdri {file}: can't be read: {first_line(error)}") from None
    radiance = np.where(np.isfinite(radiance), np.maximum(radiance, 0), 0).astype(np.float32)
    height, width = radiance.shape[:2]
    polar = (np.arange(height) + 0.5) / height * np.pi  # from straight up
    # Irradiance of a floor: sum of radiance x cosine x solid angle over the upper half.
    weight = np.maximum(np.cos(polar), 0) * np.sin(polar) * (np.pi / height) * (2 * np.pi / width)
    irradiance = float((radiance.astype(np.float64).mean(axis=-1) * weight[:, None]).sum())
    if irradiance <= 0:
        raise UserError(f"hdri {file}: has no light in its upper half, which is the sky")
    return radiance, WHITE * np.pi / irradiance
