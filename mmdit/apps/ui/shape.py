"""The 3-D view of a result: the mesh and the points that ``mmdit mesh`` makes of a sample."""

from __future__ import annotations

from pathlib import Path

from mmdit.apps.ui.results import ResultStore
from mmdit.errors import UserError
from mmdit.geometry.camera import focal_of
from mmdit.geometry.mesh import make_mesh
from mmdit.geometry.sample_folder import MESH, POINTS, read_geometry
from mmdit.modalities import IMAGE

_MAX_SIZE = 512  # points along the longer side
_FOV, _DEPTHS = 45.0, (1.0, 2.0)
_NEEDED = (IMAGE, "depth")


def read_fov(text: str) -> float | None:
    """The field of view that a visitor wrote, degrees; nothing = None. Raises UserError for other words."""
    try:
        return float(text.strip().rstrip("°").replace(",", ".")) if text.strip() else None
    except ValueError:
        raise UserError(
            f"the field of view is {text!r}: give degrees, such as 60, or nothing to have it estimated"
        ) from None


def write_shape(store: ResultStore, result: str, sample: int, fov: float | None = None) -> tuple[Path, str]:
    """Write mesh.glb and points.ply beside a sample's files; returns the mesh's path, and what its camera is.

    ``fov``: horizontal field of view, degrees; None = estimated.

    Raises:
        UserError: a model without RGB and depth, no angle of a camera, or maps that are no surface.
    """
    focal = None if fov is None else focal_of(fov, "the field of view")
    if missing := [name for name in _NEEDED if name not in store.codecs]:
        raise UserError(f"the 3-D view needs {' and '.join(_NEEDED)}; this model has no {' and no '.join(missing)}")
    folder = store.sample(result, sample)
    geometry = read_geometry(folder, _MAX_SIZE)
    maps = (geometry.rgb, geometry.depth, geometry.normal, geometry.space)
    try:
        made = make_mesh(*maps, focal=focal, texture=geometry.texture)
        said = made.camera.words(geometry.texture.shape[1])
    except UserError as error:  # a picture without smooth surfaces says nothing of its camera, but can be looked at
        focal = focal_of(_FOV) if focal is None else focal
        made = make_mesh(*maps, focal=focal, depth_range=_DEPTHS, texture=geometry.texture, refine=False)
        angle = f"a field of view of {_FOV:g}° and " if fov is None else ""
        said = f"assumed, {angle}distances {_DEPTHS[0]:g} to {_DEPTHS[1]:g}, for {error}"
    (folder / POINTS).write_bytes(made.ply())
    path = folder / MESH
    path.write_bytes(made.glb())
    return path, said
