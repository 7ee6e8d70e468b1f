"""A short camera path through a scene: what a hand-held camera sees, with the truth of every frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mmdit.sources.scenes.camera import Camera, aim
from mmdit.sources.scenes.layout import Layout

STEP_BACK = 1.15  # of the scene's own distance: the main object stays in view
SWAY = 0.15  # half the way from side to side, in half image widths
ORBIT_DEGREES = 5.0  # how far the pitch goes up and down
PUSH = 0.12  # how far the distance goes up and down, as a share of it


def camera_path(camera: Camera, num_frames: int) -> Iterator[Camera]:
    """Cameras on a closed path about what ``camera`` looks at: they sway, orbit up and down, and come nearer and go away.

    Everything in a frame moves, by about 1% of the image's width from frame to frame for 48 frames. The world's floor is
    z = 0, which the axis must hit.
    """
    angle = math.radians(camera.elevation)
    ahead = np.array([0.0, math.cos(angle), -math.sin(angle)])
    eye = np.asarray(camera.eye)
    # The main object stands at the origin: its distance is that of the point of the axis above it.
    distance = float(-eye[1] / ahead[1])
    centre = eye + distance * ahead
    half_width = distance * math.tan(math.radians(camera.fov) / 2)
    for frame in range(num_frames):
        phase = 2 * math.pi * frame / num_frames
        elevation = camera.elevation + ORBIT_DEGREES * math.sin(phase + 2.0)
        away = distance * STEP_BACK * (1 + PUSH * math.sin(phase + 4.0))
        sideways = np.array([SWAY * half_width * math.sin(phase), 0.0, 0.0])
        yield aim(centre + sideways, away, elevation, camera.fov)


def path_layouts(layout: Layout, num_frames: int) -> Iterator[Layout]:
    """The scene as the cameras of ``camera_path`` see it."""
    for camera in camera_path(layout.camera, num_frames):
        yield replace(layout, camera=camera)
