from __future__ import annotations

import numpy as np

from mmdit.metrics.flicker import Correspondence, View
from mmdit.sources.scenes.camera import silhouette
from mmdit.sources.scenes.camera_path import camera_path, path_layouts
from mmdit.sources.scenes.layout import sample_layout


def test_path_is_closed_smooth_and_keeps_the_object_in_view():
    for index in range(3):
        layout = sample_layout(2026, "video", index)
        cameras = list(camera_path(layout.camera, 48))
        eyes = np.array([camera.eye for camera in cameras])
        steps = np.linalg.norm(np.diff([*eyes, eyes[0]], axis=0), axis=1)
        assert steps.max() < 4 * np.median(steps)
        assert steps.min() > 0
        assert (eyes[:, 2] > 0).all()
        mesh = layout.objects[0].mesh(sections=16)
        for camera in cameras[::6]:
            plane, depth = camera.project(mesh.vertices)
            assert depth.min() > 0.3
            assert np.abs(plane).max() < 1.3
            assert silhouette(mesh, camera).mean() > 0.08


def test_rendered_truth_is_one_scene_from_many_sides():
    """The same points, found by depth and camera, have the same labels and, turned into the world, the same normals."""
    from mmdit.sources.scenes.solids import Solids

    scenes = Solids(2026, "video", 32, False, 1, "main")
    first, second = (scenes.render(layout) for layout in list(path_layouts(scenes.layout(0), 48))[:2])
    before, now = (
        View(
            frame.depth,
            np.asarray(frame.layout.camera.eye),
            frame.layout.camera.world_to_camera,
            frame.layout.camera.fov,
        )
        for frame in (first, second)
    )
    where = Correspondence.between(now, before)
    assert where.seen.mean() > 0.8
    world = [frame.normal @ frame.layout.camera.world_to_camera for frame in (first, second)]
    cosine = (where.sample(world[0]) * world[1]).sum(axis=-1)[where.seen]
    assert np.median(cosine) > 0.9999
    moved = np.hypot(where.columns - np.arange(32), where.rows - np.arange(32)[:, None])[where.seen]
    assert 0.1 < moved.mean() < 1.0
    assert not np.array_equal(first.rgb, second.rgb)
