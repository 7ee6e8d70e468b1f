"""The 3-D view of a result: the camera that is written, estimated or assumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmdit.apps.ui.results import ResultStore
from mmdit.apps.ui.shape import read_fov, write_shape
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codecs

SIZE = 48


def ball(fov: float) -> dict[str, np.ndarray]:
    """A large ball before a wall, seen by a camera of this field of view: raw arrays, depth from 0 to 1."""
    focal = 1 / np.tan(np.radians(fov) / 2)
    across = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    x, y = np.meshgrid(across / focal, -across / focal)
    ray = np.stack([x, y, -np.ones_like(x)], axis=-1)
    middle, radius = np.array([0.0, 0.0, -3.0]), 1.6
    a, b = (ray**2).sum(-1), ray @ middle
    inside = b**2 - a * (middle @ middle - radius**2)
    hit = inside > 0
    distance = np.where(hit, (b - np.sqrt(np.maximum(inside, 0))) / a, 4.0)
    normal = np.where(hit[..., None], (ray * distance[..., None] - middle) / radius, [0.0, 0.0, 1.0])
    depth = (distance - distance.min()) / np.ptp(distance)
    rgb = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)
    return {"rgb": rgb, "depth": depth.astype(np.float32), "normal": normal.astype(np.float32)}


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    modalities = {
        **{name: MODALITIES[name] for name in ("rgb", "normal")},
        "depth": MODALITIES["depth"].replace(space="depth"),
    }
    return ResultStore(tmp_path, build_codecs({name: modalities[name] for name in ("rgb", "depth", "normal")}))


def test_a_field_of_view_is_estimated_or_taken(store):
    result = store.write([ball(60)], [{}])
    path, said = write_shape(store, result, 0)
    assert path.read_bytes()[:4] == b"glTF"
    assert "estimated: " in said
    assert "fit the normals as well" in said
    estimated = float(said.split("field of view ")[1].split("°")[0])
    assert abs(estimated - 60) < 12
    _, said = write_shape(store, result, 0, 60.0)
    assert said.startswith("field of view 60.0°")
    assert "estimated" not in said


def test_what_can_not_be_estimated_is_assumed(store):
    flat = {**ball(60), "depth": np.full((SIZE, SIZE), 0.5, dtype=np.float32)}
    flat["depth"][0, 0] = 0
    result = store.write([flat], [{}])
    assert "assumed, a field of view of 45° and distances 1 to 2" in write_shape(store, result, 0)[1]
    assert "assumed, distances 1 to 2" in write_shape(store, result, 0, 70.0)[1]


def test_a_field_of_view_as_visitors_write_it(store):
    assert [read_fov(text) for text in ("", "  ", "60", " 61.5° ", "61,5")] == [None, None, 60.0, 61.5, 61.5]
    with pytest.raises(UserError, match=r"the field of view is 'wide': give degrees, such as 60, or nothing"):
        read_fov("wide")
    result = store.write([ball(60)], [{}])
    for fov in (0.0, 200.0, float("nan")):
        with pytest.raises(UserError, match=r"the field of view is .*: give the horizontal field of view in degrees"):
            write_shape(store, result, 0, fov)
