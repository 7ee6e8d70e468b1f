"""A surface as files that other programs open: a textured glTF 2.0 mesh and a coloured PLY point cloud, through trimesh.

Both are in the camera frame, x right, y up, z towards the viewer, with the camera at the origin: glTF's own axes.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmdit.errors import UserError
from mmdit.geometry.camera import Camera, find_camera, fov_of
from mmdit.geometry.surface import Surface, join

Array = np.ndarray


def need_trimesh() -> Any:
    """Return the module. Raises UserError where it is missing."""
    try:
        import trimesh
    except ImportError:
        raise UserError("meshes need trimesh: pip install 'multimodal-dit[mesh]'") from None
    return trimesh


@dataclass(frozen=True)
class DepthMesh:
    """The visible surface of a sample.

    Args:
        surface: points of the pixels, and which of them hang together.
        rgb: (H, W, 3) uint8, the colours of its points.
        texture: (H', W', 3) uint8, the same picture at any size.
        normal: (H, W, 3) unit vectors; None = trimesh's, of the faces around a vertex.
        camera: what it was made with.
    """

    surface: Surface
    rgb: Array
    texture: Array
    normal: Array | None
    camera: Camera

    def faces(self) -> Array:
        """(F, 3) numbers of pixels, row by row, counter-clockwise for the viewer: triangles whose sides are not torn."""
        height, width = self.rgb.shape[:2]
        number = np.arange(height * width).reshape(height, width)
        corner, right, below, across = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
        joined_right, joined_below = self.surface.right, self.surface.below
        upper = joined_right[:-1] & joined_below[:, :-1]
        lower = joined_right[1:] & joined_below[:, 1:]
        return np.concatenate(
            [
                np.stack([corner, below, right], axis=-1)[upper],
                np.stack([across, right, below], axis=-1)[lower],
            ]
        )

    def points(self) -> tuple[Array, Array]:
        """The points of the mesh, (N, 3) float64, and their colours, (N, 3) uint8."""
        used = np.unique(self.faces())
        return self.surface.points.reshape(-1, 3)[used], self.rgb.reshape(-1, 3)[used]

    def trimesh(self) -> Any:
        """The ``trimesh.Trimesh`` with its texture. Raises UserError without trimesh, or for a surface torn everywhere."""
        trimesh = need_trimesh()
        faces = self.faces()
        if not len(faces):
            raise UserError("no two pixels hang together: the depth map is no surface")
        used, numbers = np.unique(faces, return_inverse=True)
        height, width = self.rgb.shape[:2]
        column, row = (used % width + 0.5) / width, (used // width + 0.5) / height
        material = trimesh.visual.material.PBRMaterial(
            name="rgb",
            baseColorTexture=Image.fromarray(self.texture),
            metallicFactor=0.0,
            roughnessFactor=1.0,
            doubleSided=True,
        )
        uv = np.stack([column, 1 - row], axis=-1)
        return trimesh.Trimesh(
            vertices=self.surface.points.reshape(-1, 3)[used],
            faces=numbers.reshape(-1, 3),
            vertex_normals=None if self.normal is None else self.normal.reshape(-1, 3)[used],
            visual=trimesh.visual.TextureVisuals(uv=uv, material=material),
            process=False,
            metadata=self._facts(),
        )

    def glb(self) -> bytes:
        """The mesh as binary glTF, with the texture in it, and the camera it was made with."""
        scene = need_trimesh().Scene()
        scene.add_geometry(self.trimesh(), node_name="surface", geom_name="surface")
        content: bytes = scene.export(file_type="glb", include_normals=True)
        return _with_camera(content, self.camera, self.rgb.shape[1] / self.rgb.shape[0], self._facts())

    def ply(self) -> bytes:
        """The points as binary PLY with colours."""
        points, colors = self.points()
        content: bytes = need_trimesh().PointCloud(points.astype(np.float32), colors).export(file_type="ply")
        return content

    def _facts(self) -> dict[str, Any]:
        camera, width = self.camera, self.texture.shape[1]
        return {
            "fov_degrees": camera.fov,
            "focal_pixels": camera.pixels(width),
            "estimated_fov_degrees": sorted(map(fov_of, camera.focal_range)) if camera.focal_range else None,
            "depth_range": [camera.near, camera.far],
            "unit": "as given" if camera.scaled else "the nearest distance",
        }


def make_mesh(
    rgb: Array,
    depth: Array,
    normal: Array | None,
    space: str,
    *,
    focal: float | None = None,
    depth_range: tuple[float, float] | None = None,
    refine: bool = True,
    texture: Array | None = None,
) -> DepthMesh:
    """Make the surface of a sample; what is not given of the camera is estimated, see ``find_camera``.

    Args:
        rgb: (H, W, 3) uint8.
        depth: (H, W) relative, 0 to 1 in ``space``, "depth" or "disparity".
        normal: (H, W, 3) unit vectors in the camera frame, or None.
        focal: focal length over half the image's width (``focal_of(fov)``).
        depth_range: distances of the near and the far end.
        refine: whether the normals move the points.
        texture: the same picture at another size; None = ``rgb``.

    Raises:
        UserError: maps of other sizes, values that are not finite, or what ``find_camera`` refuses.
    """
    for name, each in (("depth", depth), ("normal", normal)):
        if each is not None and each.shape[:2] != rgb.shape[:2]:
            raise UserError(f"{name} is {each.shape[0]} x {each.shape[1]}, rgb {rgb.shape[0]} x {rgb.shape[1]}")
        if each is not None and not np.isfinite(each).all():
            raise UserError(f"{name} holds NaN or infinity: give a map that is whole")
    camera = find_camera(depth, normal, space, focal=focal, depth_range=depth_range)
    vectors = None if normal is None else normal.astype(np.float64)
    surface = join(camera.distances(depth, space), vectors, camera.focal, refine=refine)
    return DepthMesh(surface, rgb, rgb if texture is None else texture, vectors, camera)


def _with_camera(content: bytes, camera: Camera, aspect: float, facts: dict[str, Any]) -> bytes:
    """Add a camera where the picture was taken, and the facts, to a binary glTF file (glTF 2.0, sections 3.10 and 4.4)."""
    length = struct.unpack_from("<I", content, 12)[0]
    tree = json.loads(content[20 : 20 + length])
    perspective = {
        "yfov": float(2 * np.arctan(1 / (camera.focal * aspect))),
        "aspectRatio": float(aspect),
        "znear": float(camera.near / 100),
    }
    tree["cameras"] = [{"name": "camera", "type": "perspective", "perspective": perspective}]
    tree["nodes"].append({"name": "camera", "camera": 0})
    tree["scenes"][tree.get("scene", 0)]["nodes"].append(len(tree["nodes"]) - 1)
    tree["asset"]["extras"] = facts
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    rest = content[20 + length :]
    out = io.BytesIO()
    out.write(struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest)))
    out.write(struct.pack("<I4s", len(text), b"JSON") + text + rest)
    return out.getvalue()
