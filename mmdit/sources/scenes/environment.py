"""Light from all around: a picture of a place in high dynamic range, in equirectangular projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
UP = np.array([0.0, 0.0, 1.0])
WHITE = 0.9  # radiance of a white floor or wall with nothing before it
MAX_BOOST = 100.0  # of the exposure, where nearly all light is behind the wall


@dataclass(frozen=True)
class Environment:
    """file: path of an .hdr or .exr, whose top is up; turn: degrees about the vertical; digest: of the file's bytes."""

    file: str
    turn: float
    digest: str

    def emitter(self, mi: Any, wall_normal: Sequence[float]) -> dict[str, Any]:
        """The Mitsuba light, as bright as the sun and the other light of the scenes are together.

        ``wall_normal``: of the wall behind the objects, world frame, towards the camera.
        """
        to_world = mi.ScalarTransform4f().rotate([0, 0, 1], self.turn) @ mi.ScalarTransform4f().rotate([1, 0, 0], 90)
        radiance, power = _read(self.file, self.digest)
        return {
            "type": "envmap",
            "bitmap": mi.Bitmap(radiance),
            "scale": self._exposure(power, np.asarray(wall_normal)),
            "to_world": to_world,
        }

    def _exposure(self, power: np.ndarray, wall_normal: np.ndarray) -> float:
        """The factor after which the brighter of a white floor and a white wall, each before the other, has ``WHITE``."""
        floor, wall = (_cosines(power.shape, normal, self.turn) for normal in (UP, wall_normal))
        before = power * ((floor > 0) & (wall > 0))
        lit = max(float((before * cosine).sum()) for cosine in (floor, wall))
        everywhere = float((power * np.maximum(floor, 0)).sum())
        return WHITE * math.pi / max(lit, everywhere / MAX_BOOST)


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
def _read(file: str, digest: str) -> tuple[np.ndarray, np.ndarray]:
    """Radiance float32 (H, W, 3), at least 0, with some in the upper half; and its mean over colours x solid angle, (H, W)."""
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
    solid_angle = np.sin((np.arange(height) + 0.5) / height * np.pi) * (np.pi / height) * (2 * np.pi / width)
    power = radiance.astype(np.float64).mean(axis=-1) * solid_angle[:, None]
    if (power * np.maximum(_cosines(power.shape, UP), 0)).sum() <= 0:
        raise UserError(f"hdri {file}: has no light in its upper half, which is the sky")
    return radiance, power


def _cosines(shape: tuple[int, ...], normal: np.ndarray, turn: float = 0.0) -> np.ndarray:
    """Cosines (H, W) between a normal (3,), world frame, and the ways to a picture's texels; ``turn`` as in ``Environment``."""
    height, width = shape
    polar = ((np.arange(height) + 0.5) / height * np.pi)[:, None]  # from straight up
    azimuth = np.radians((np.arange(width) + 0.5) / width * 360 - turn)  # from world +y
    return np.sin(polar) * (normal[0] * np.sin(azimuth) + normal[1] * np.cos(azimuth)) + np.cos(polar) * normal[2]
