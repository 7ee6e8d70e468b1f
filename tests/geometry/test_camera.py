"""The camera that is estimated is the true one, to within its error."""

from __future__ import annotations

import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.geometry.camera import Camera, find_camera, focal_of, fov_of


@pytest.mark.parametrize("space", ["depth", "disparity"])
@pytest.mark.parametrize(("fov", "size"), [(30, (64, 64)), (70, (48, 96))])
def test_exact_maps_give_the_exact_camera(make_scene, space, fov, size):
    scene = make_scene(fov, *size)
    camera = find_camera(scene.relative[space], scene.normal, space)
    assert camera.fov == pytest.approx(fov, abs=0.3)
    ratio = scene.distances.max() / scene.distances.min()
    assert (camera.near, camera.far) == (1.0, pytest.approx(ratio, rel=0.01))
    low, high = sorted(map(fov_of, camera.focal_range))
    assert low < fov < high
    assert high - low < 0.12 * fov
    assert camera.angle < 1
    metres = (scene.distances.min(), scene.distances.max())
    known = find_camera(scene.relative[space], scene.normal, space, depth_range=metres)
    assert known.fov == pytest.approx(fov, abs=0.7)
    np.testing.assert_allclose(known.distances(scene.relative[space], space), scene.distances, rtol=1e-9)
    given = find_camera(scene.relative[space], scene.normal, space, focal=focal_of(fov))
    assert given.far == pytest.approx(ratio, rel=0.01)
    assert given.focal_range is None


def test_worse_maps_have_a_larger_error_and_other_normals_fit_no_camera(make_scene):
    scene, rng = make_scene(45), np.random.default_rng(0)
    exact = find_camera(scene.relative["depth"], scene.normal, "depth")
    noisy = scene.normal + rng.normal(scale=0.3, size=scene.normal.shape)
    worse = find_camera(scene.relative["depth"] + rng.normal(scale=0.01, size=(64, 64)), noisy, "depth")
    spread = [each.focal_range[1] / each.focal_range[0] for each in (exact, worse)]
    assert spread[1] > 1.2 * spread[0]
    assert worse.focal_range[0] < focal_of(45) < worse.focal_range[1]
    wrong = find_camera(scene.relative["depth"], scene.normal[::-1, ::-1], "depth")
    assert wrong.angle > 10 * exact.angle


def test_words(make_scene):
    scene = make_scene(45)
    words = find_camera(scene.relative["depth"], scene.normal, "depth").words(64)
    assert words.startswith("field of view 4")
    assert "fit the normals as well" in words
    assert "the scale is unknown" in words
    assert Camera(focal_of(90), 0.5, 8, scaled=True).words(100) == (
        "field of view 90.0° (focal length 50.0 px of 100); distances 0.5 to 8"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth_range": (3.0, 2.0)}, "depth_range is 3 2: give two rising numbers above 0"),
        ({"depth_range": (0.0, 2.0)}, "depth_range is 0 2"),
        ({"normal": None}, "has no normals to estimate the field of view and the depth range from"),
        ({"normal": None, "focal": 1.0}, "has no normals to estimate the depth range from"),
        (
            {"depth": np.zeros((64, 64))},
            "0 of 4096 pixels show a smooth surface, too few to estimate a camera.*--fov and --depth_range; in Python focal",
        ),
        ({"space": "metres"}, "unknown depth space 'metres'"),
    ],
)
def test_bad_input(make_scene, arguments, message):
    scene = make_scene()
    given = {"depth": scene.relative["depth"], "normal": scene.normal, "space": "depth"} | arguments
    with pytest.raises(UserError, match=message):
        find_camera(given.pop("depth"), given.pop("normal"), given.pop("space"), **given)
    with pytest.raises(UserError, match="fov is 180: give the horizontal field of view"):
        focal_of(180)
