"""What a sample's folder holds of geometry: its picture, depth and normals, as the commands write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmdit.errors import UserError
from mmdit.modalities import IMAGE, MODALITIES, build_codec
from mmdit.modalities.codec import Codec
from mmdit.names import DEPTH_SPACES, METADATA
from mmdit.storage.json_object import read_object

MESH, POINTS = "mesh.glb", "points.ply"  # written beside them
_DEPTH, _NORMAL = "depth", "normal"


@dataclass(frozen=True)
class Geometry:
    """Raw arrays of one sample.

    Args:
        rgb: (H, W, 3) uint8; depth: (H, W) float32, relative, 0 to 1 in ``space``; normal: (H, W, 3) float32, or None.
        texture: (H', W', 3) uint8, the picture at its own size.
    """

    rgb: np.ndarray
    depth: np.ndarray
    normal: np.ndarray | None
    space: str
    texture: np.ndarray


def read_geometry(folder: Path, max_size: int) -> Geometry:
    """Read a sample's folder; maps whose longer side is beyond ``max_size`` are made smaller.

    Raises:
        UserError: no such folder, files that are missing or damaged, or maps of different sizes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; give a sample's folder")
    for name in (METADATA, f"{IMAGE}.png", f"{_DEPTH}.npy"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: is no sample's folder, it has no {name}: give one that generate, understand, condition, edit or "
                "translate wrote"
            )
    space = read_object(folder / METADATA, constants=True).get(f"{_DEPTH}_space")
    if space not in DEPTH_SPACES:
        raise UserError(f"{folder / METADATA}: depth_space is {space!r}: must be one of {', '.join(DEPTH_SPACES)}")
    names = [IMAGE, _DEPTH, *([_NORMAL] if (folder / f"{_NORMAL}.npy").is_file() else [])]
    codecs: dict[str, Codec] = {}
    for name in names:
        modality = MODALITIES[name].replace(space=space) if name in (_DEPTH,) else MODALITIES[name]
        codecs[name] = build_codec(modality)
    files = {name: folder / f"{name}.{'png' if codecs[name].is_image else 'npy'}" for name in names}
    raw = {name: _read(path, codecs[name]) for name, path in files.items()}
    sizes = {name: array.shape[:2] for name, array in raw.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
        raise UserError(f"{folder}: its maps differ in size (height x width): {listed}")
    height, width = sizes[IMAGE]
    scale = min(1.0, max_size / max(height, width))
    size = max(3, round(height * scale)), max(3, round(width * scale))
    small = {name: codecs[name].resize_output(array, *size) for name, array in raw.items()} if scale < 1 else raw
    return Geometry(small[IMAGE], small[_DEPTH], small.get(_NORMAL), space, raw[IMAGE])


def _read(path: Path, codec: Codec) -> np.ndarray:
    reading = codec.read(path)
    for reason in codec.check_given(reading):
        raise UserError(f"{path}: {reason}")
    return reading.values
