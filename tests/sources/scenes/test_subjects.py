"""Scenes for prompts: subjects that come back, and pairs whose relation the picture shows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmdit.colours import HUES, colour_name, encode_srgb
from mmdit.sources.scenes.camera import silhouette
from mmdit.sources.scenes.layout import CATEGORY_NAMES, footprint, sample_layout
from mmdit.sources.scenes.material import colour_distance
from mmdit.sources.scenes.subjects import (
    OPPOSITE,
    RELATIONS,
    alone_scenes,
    block_relations,
    block_subjects,
    same_ground,
    sample_subject_layout,
)

NUM_SCENES = 80
# category, number of objects, camera's eye and field of view, distance of the wall: scene 0 of the first version
FIRST_SCENE = (
    "pyramid",
    2,
    [0.2881406154006727, -3.9098786856911367, 2.223199874148135, 34.83479508919481, 1.756137672968313],
)


@pytest.fixture(scope="module")
def layouts():
    return [sample_subject_layout(5, "train", index) for index in range(NUM_SCENES)]


def test_a_function_of_its_arguments():
    assert sample_subject_layout(5, "train", 7) == sample_subject_layout(5, "train", 7)
    assert sample_subject_layout(5, "train", 7) != sample_subject_layout(5, "val", 7)
    assert sample_subject_layout(5, "train", 7) != sample_subject_layout(6, "train", 7)


def test_each_subject_is_met_six_times_with_the_same_look(layouts):
    seen = Counter(number for layout in layouts for number in layout.subjects)
    assert set(seen.values()) == {6}
    looks: dict[int, set] = {}
    poses: dict[int, set] = {}
    for layout in layouts:
        for number, placed in zip(layout.subjects, layout.objects, strict=False):
            proportions = tuple(round(s / max(placed.scale), 9) for s in placed.scale)
            looks.setdefault(number, set()).add((placed.category, proportions, placed.material))
            poses.setdefault(number, set()).add((placed.yaw_degrees, placed.scale))
    assert all(len(look) == 1 for look in looks.values())
    assert all(len(pose) == 6 for pose in poses.values())


def test_every_subject_has_a_picture_of_its_own(layouts):
    for number in {number for layout in layouts for number in layout.subjects}:
        scenes = [layouts[index] for index in alone_scenes(number)]
        assert [layout.subjects for layout in scenes] == [(number,)] * 2
        assert len(scenes[1].objects) == 1
    assert any(len(layout.objects) > len(layout.subjects) for layout in layouts)


def test_partners_share_the_ground_and_nobody_else_does(layouts):
    """No picture of a subject alone has the floor of its pairs: copying it would be seen."""
    grounds = [(layout.floor.albedo, layout.wall.albedo) for layout in layouts]
    for index, layout in enumerate(layouts):
        same = [other for other in range(NUM_SCENES) if grounds[other] == grounds[index]]
        assert same == sorted({index, same_ground(index)} if layout.relation else {index})


def test_relations_in_equal_shares(layouts):
    counts = Counter(layout.relation for layout in layouts)
    assert counts == {None: NUM_SCENES // 2} | dict.fromkeys(RELATIONS, NUM_SCENES // 8)
    assert [sorted(block_relations(5, "train", block)) for block in range(10)] == [sorted(RELATIONS)] * 10
    assert all(OPPOSITE[OPPOSITE[name]] == name for name in RELATIONS)


def test_pictures_show_the_relation(layouts):
    """Left and right by the columns of the silhouettes, front and behind by the distance from the camera."""
    for layout in (layout for layout in layouts if layout.relation):
        meshes = [placed.mesh(sections=16) for placed in layout.objects]
        columns = [np.nonzero(silhouette(mesh, layout.camera))[1].mean() for mesh in meshes]
        distances = [np.linalg.norm(footprint(mesh)[0] - np.asarray(layout.camera.eye)[:2]) for mesh in meshes]
        shown = {
            "left": columns[0] < columns[1] - 5,
            "right": columns[0] > columns[1] + 5,
            "front": distances[0] < distances[1],
            "behind": distances[0] > distances[1],
        }
        assert shown[layout.relation]
        (x, y), (other_x, other_y) = (placed.position for placed in layout.objects)
        sideways = abs(x - other_x) > abs(y - other_y)
        assert sideways == (layout.relation in ("left", "right"))


def test_the_two_subjects_of_a_block_can_be_told_apart():
    categories = []
    for block in range(40):
        one, other = block_subjects(5, "train", block)
        assert one.category != other.category
        assert one.colour != other.colour
        assert colour_distance(one.material.albedo, other.material.albedo) > 0.38
        categories.append(one.category)
    assert Counter(categories) == dict.fromkeys(CATEGORY_NAMES, 4)


def test_todays_scenes_are_as_they_were():
    """Numbers of scene 0 of the first version."""
    layout = sample_layout(0, "train", 0)
    assert layout.relation is None
    assert layout.subjects == ()
    assert (layout.category, len(layout.objects)) == FIRST_SCENE[:2]
    np.testing.assert_allclose([*layout.camera.eye, layout.camera.fov, layout.wall_distance], FIRST_SCENE[2], rtol=1e-9)


def test_hues_cover_the_circle_once():
    edges = sorted(HUES.values(), key=lambda interval: interval[1])
    assert [low for low, _ in edges[1:]] == [high for _, high in edges[:-1]]
    assert edges[0][0] == edges[-1][1]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((1, 0, 0), "red"),
        ((1, 0, 0.1), "red"),
        ((1, 0.5, 0), "orange"),
        ((1, 1, 0), "yellow"),
        ((0, 0.6, 0), "green"),
        ((0, 1, 1), "cyan"),
        ((0.1, 0.2, 0.9), "blue"),
        ((0.5, 0, 1), "purple"),
        ((1, 0.4, 0.8), "pink"),
        ((0, 0, 0), "black"),
        ((0.5, 0.5, 0.52), "grey"),
        ((1, 1, 1), "white"),
    ],
)
def test_names_of_colours(rgb, name):
    assert colour_name(rgb) == name


def test_srgb_encoding():
    """The two pieces of IEC 61966-2-1 and their ends."""
    np.testing.assert_allclose(encode_srgb([0, 0.0031308, 0.5, 1, 2]), [0, 0.0404499, 0.735357, 1, 1], atol=1e-6)
