"""The 3-D view of a result: the mesh and the points that ``mmdit mesh`` makes of a sample."""

from __future__ import annotations

from pathlib import Path

from mmdit.apps.ui.results import ResultStore
from mmdit.errors import UserError
from mmdit.geometry.mesh import make_mesh
from mmdit.geometry.sample_folder import MESH, POINTS, read_geometry
from mmdit.modalities import IMAGE

_MAX_SIZE = 512  # points along the longer side
_NEEDED = (IMAGE, "depth")


def write_shape(store: ResultStore, result: str, sample: int) -> tuple[Path, str]:
    """Write mesh.glb and points.ply beside a sample's files; returns the mesh's path, and what its camera is.

    Raises:
        UserError: a model without RGB and depth, or maps that are no surface.
    """
    if missing := [name for name in _NEEDED if name not in store.codecs]:
        raise UserError(f"the 3-D view needs {' and '.join(_NEEDED)}; this model has no {' and no '.join(missing)}")
    folder = store.sample(result, sample)
    geometry = read_geometry(folder, _MAX_SIZE)
    made = make_mesh(geometry.rgb, geometry.depth, geometry.normal, geometry.space, texture=geometry.texture)
    (folder / POINTS).write_bytes(made.ply())
    path = folder / MESH
    path.write_bytes(made.glb())
    return path, made.camera.words(geometry.texture.shape[1])
