"""The 3-D view of a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmdit.apps.ui.results import ResultStore
from mmdit.errors import UserError
from mmdit.modalities import IMAGE

SHAPE = "points.glb"
_FOCAL = 1.2  # of the image's height: a common lens
_NEAR, _FAR = 1.0, 2.0


def write_shape(store: ResultStore, result: str, sample: int) -> Path:
    """Write the coloured points of a sample as GLB beside its files. Raises UserError for a model without depth."""
    import trimesh

    arrays = store.arrays(result, sample)
    depth = arrays.get("depth")
    if depth is None or IMAGE not in arrays:
        raise UserError("the 3-D view needs RGB and depth, which this model does not make")
    distance = _NEAR + (_FAR - _NEAR) * depth.astype(np.float64)
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    x = (columns - width / 2) / (_FOCAL * height) * distance
    y = (height / 2 - rows) / (_FOCAL * height) * distance
    points = np.stack([x, y, -distance], axis=-1).reshape(-1, 3)
    cloud = trimesh.PointCloud(points - points.mean(axis=0), arrays[IMAGE].reshape(-1, 3))
    path = store.sample(result, sample) / SHAPE
    path.write_bytes(cloud.scene().export(file_type="glb"))
    return path
