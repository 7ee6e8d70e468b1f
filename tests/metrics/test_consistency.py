import math

import numpy as np
import pytest

from mmdit.geometry.slopes import NormalFamily, radius_of
from mmdit.metrics.consistency import ConsistencyMetrics, fit_depth_to_normals
from mmdit.metrics.normal import angle_degrees
from mmdit.metrics.segmentation import LabelSet

SIZE, FOCAL = 48, 2.0


def normals_from_depth(depth, space, focal, shift):
    """What the fit turns a depth map into: unit normals (H, W, 3); ``shift`` 0 for metric input."""
    vectors = NormalFamily(depth.astype(np.float64), space, radius_of(depth)).vectors(focal, shift)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def rays(size=SIZE, focal=FOCAL):
    """Points at depth 1 in the camera frame, (H, W, 3): x right, y up, z towards the viewer."""
    x = ((np.arange(size) + 0.5) / size * 2 - 1)[None, :].repeat(size, axis=0)
    return np.stack([x / focal, -x.T / focal, -np.ones_like(x)], axis=-1)


def plane(normal, distance):
    """Depth (H, W) and normals (H, W, 3) of the plane with points p . normal = -distance."""
    unit = np.asarray(normal, dtype=float) / np.linalg.norm(normal)
    return -distance / (rays() @ unit), np.broadcast_to(unit, (SIZE, SIZE, 3)).copy()


def room(wall_normal=(0.3, 0.0, 1.0), radius=0.55):
    """A floor, a wall and a sphere in closed form."""
    depths, normals = zip(plane((0, 1, 0.2), 1.0), plane(wall_normal, 5.0), sphere(radius), strict=True)
    depths = np.where(np.isfinite(depths) & (np.array(depths) > 0), depths, np.inf)
    nearest = depths.argmin(axis=0)
    return depths.min(axis=0), np.take_along_axis(np.array(normals), nearest[None, ..., None], axis=0)[0]


def sphere(radius, centre=(0.1, -0.2, -3.0)):
    direction, centre = rays(), np.asarray(centre)
    a, b, c = (direction**2).sum(-1), -2 * direction @ centre, centre @ centre - radius**2
    discriminant = b**2 - 4 * a * c
    with np.errstate(invalid="ignore"):
        depth = np.where(discriminant > 0, (-b - np.sqrt(discriminant)) / (2 * a), np.inf)
    hit = np.where(np.isfinite(depth), depth, 3.0)[..., None] * direction
    return depth, (hit - centre) / np.linalg.norm(hit - centre, axis=-1, keepdims=True)


def relative(depth, space, scale=0.7, shift=-0.1):
    return scale * (depth if space == "depth" else 1 / depth) + shift


@pytest.mark.parametrize("normal", [(0, 0, 1), (0, 1, 0.3), (0.5, -0.2, 1), (-0.4, 0.6, 0.8)])
def test_the_disparity_of_a_plane_gives_its_normal_exactly(normal):
    depth, normals = plane(normal, 4.0)
    visible = depth > 0
    angles = angle_degrees(normals_from_depth(1 / depth, "disparity", FOCAL, 0.0), normals)
    assert visible.any()
    # A plane seen edge-on has its horizon where 1 / depth changes sign; the formula holds on both sides of it.
    assert np.minimum(angles, 180 - angles).max() < 1e-5


def test_a_sphere_in_metric_depth():
    depth, normals = sphere(1.0)
    inside = np.zeros((SIZE, SIZE), dtype=bool)
    facing = (np.where(np.isfinite(depth), -(normals * rays()).sum(-1), 0) / np.linalg.norm(rays(), axis=-1)) > 0.6
    inside[1:-1, 1:-1] = facing[1:-1, 1:-1]
    derived = normals_from_depth(np.where(np.isfinite(depth), depth, 4.0), "depth", FOCAL, 0.0)
    assert inside.sum() > 200
    assert angle_degrees(derived, normals)[inside].mean() < 2  # of the discretisation


@pytest.mark.parametrize("space", ["depth", "disparity"])
def test_ground_truth_scores_low_whatever_its_scale_and_shift(space):
    depth, normals = room()
    for scale, shift in ((1.0, 0.0), (0.05, 3.0), (20.0, -1.0)):
        fit = fit_depth_to_normals(relative(depth, space, scale, shift), normals, space)
        assert fit.angle < 4
        assert fit.pixels_used > 0.7


def test_the_fit_is_as_good_as_the_true_camera():
    # Focal length and shift can trade places (a bas-relief), so they are judged by the angle they leave.
    depth, normals = room()
    fit = fit_depth_to_normals(1 / depth, normals, "disparity")
    at_true_camera = angle_degrees(normals_from_depth(1 / depth, "disparity", FOCAL, 0.0), normals)
    assert fit.angle <= at_true_camera.mean()  # of all pixels, with the steps of depth that the fit leaves out
    assert fit.focal == pytest.approx(FOCAL, rel=0.2)


def test_normals_of_another_scene_score_clearly_worse():
    depth, normals = room()
    _, others = room(wall_normal=(-0.7, 0.0, 1.0), radius=0.9)
    own = fit_depth_to_normals(relative(depth, "disparity"), normals, "disparity").angle
    assert fit_depth_to_normals(relative(depth, "disparity"), others[:, ::-1], "disparity").angle > 2.5 * own
    assert fit_depth_to_normals(relative(depth, "disparity"), -normals, "disparity").angle > 90


def test_turning_the_normals_shows():
    depth, normals = room()
    turn = math.radians(40)
    turned = normals @ np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    assert fit_depth_to_normals(relative(depth, "disparity"), turned, "disparity").angle > 10


def test_a_flat_map_looks_at_the_viewer():
    # Its normals are (0, 0, 1) everywhere: 0 degrees from themselves, 90 from (1, 0, 0).
    flat = np.full((16, 16), 0.5)
    towards = np.broadcast_to([0.0, 0.0, 1.0], (16, 16, 3))
    assert fit_depth_to_normals(flat, towards, "disparity").angle == pytest.approx(0, abs=1e-9)
    assert fit_depth_to_normals(flat, towards[..., ::-1], "disparity").angle == pytest.approx(90)


def test_clipped_pixels_and_steps_are_left_out():
    ramp = np.linspace(0.1, 0.9, 32)[None].repeat(32, axis=0)
    normals = np.broadcast_to([0.0, 0.0, 1.0], (32, 32, 3))
    clipped = ramp.clip(0.2, 0.8)
    used = fit_depth_to_normals(clipped, normals, "depth").pixels_used
    assert used == pytest.approx(((ramp > 0.2) & (ramp < 0.8)).mean())
    stepped = ramp + 5 * (np.arange(32)[:, None] >= 16)
    # Two rows beside the step, and the two pixels at the ends of the range's two columns.
    assert fit_depth_to_normals(stepped, normals, "depth").pixels_used == pytest.approx(1 - (64 + 30) / 1024, abs=0.03)


def test_invalid_input():
    depth, normals = room()
    with pytest.raises(ValueError, match="unknown depth space"):
        fit_depth_to_normals(depth, normals, "metres")
    with pytest.raises(ValueError, match="depth and normals"):
        fit_depth_to_normals(depth[1:], normals, "depth")
    with pytest.raises(ValueError, match="at least 3 x 3"):
        fit_depth_to_normals(depth[:2, :2], normals[:2, :2], "depth")
    depth[3, 3] = np.nan
    assert math.isnan(fit_depth_to_normals(depth, normals, "depth").angle)
    assert math.isnan(fit_depth_to_normals(np.ones((8, 8)), np.zeros((8, 8, 3)), "depth").angle)


CLASSES = [{"id": 0, "name": "floor"}, {"id": 1, "name": "wall"}, {"id": 2, "name": "cone"}, {"id": 3, "name": "torus"}]


def test_segmentation_agreement_by_hand():
    metrics = ConsistencyMetrics("disparity", LabelSet(CLASSES))
    metrics.update_segmentation(np.array([[0, 0, 1, 2, 2, 2]]), np.array([[0, 1, 1, 2, 3, 0]]))
    result = metrics.compute()
    assert result["segmentation_agreement"] == pytest.approx(3 / 6)
    assert result["segmentation_agreement_objects"] == pytest.approx(1 / 3)
    assert math.isnan(result["depth_normal_angle"])


def test_geometry_is_averaged_and_what_can_not_be_measured_is_counted():
    depth, normals = room()
    metrics = ConsistencyMetrics("depth", None)
    metrics.update_geometry(depth, normals)
    metrics.update_geometry(depth, np.zeros_like(normals))
    assert metrics.compute()["num_skipped"] == 1
    assert metrics.compute()["depth_normal_angle"] == fit_depth_to_normals(depth, normals, "depth").angle
    metrics.update_geometry(np.full_like(depth, np.nan), normals)
    assert math.isnan(metrics.compute()["depth_normal_angle"])
    with pytest.raises(ValueError, match="without segmentation"):
        metrics.update_segmentation(np.zeros((2, 2), int), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="without a depth space"):
        ConsistencyMetrics(None, LabelSet(CLASSES)).update_geometry(depth, normals)
