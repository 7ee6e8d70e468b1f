"""The camera behind a relative depth map: given, or estimated from the normals beside it, with an error.

A relative map leaves three numbers open: the focal length, how many times farther its far end is than its near end, and the
scale. An overall scale turns no surface, so it can't be seen and is given, or 1. The other two are those for which the normals
of the depth map agree best with the normals that are there, over windows that are wide beside the noise of a network. On exact
maps they are exact to a tenth of a degree (``tests/geometry/test_camera.py``). Networks' maps err together over large parts of
an image, which no resampling of its pixels shows; so the error is the range of focal lengths whose angle is within a tenth of
the best one's, each with its own ratio. On the scenes and the bundled model it holds the truth three times in four.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, uniform_filter
from scipy.optimize import minimize, minimize_scalar

from mmdit.errors import UserError, unknown_name
from mmdit.geometry.slopes import FOCAL_RANGE, RATIO_RANGE, NormalFamily, shift_of, steps
from mmdit.names import DEPTH_SPACES

Array = np.ndarray
WINDOW = 3 / 64  # radius of the windows, of the image's width
AWAY = 2 / 64  # how far from steps of depth windows stay
AGREEMENT = 0.95  # length of the mean normal of a window that holds one surface
AS_GOOD = 1.1  # a focal length is possible if its angle is at most so many times the best one's
MIN_PIXELS = 64
FIT_PIXELS = 2048
LEAST_FOV, MOST_FOV = 1.0, 179.0  # degrees
MOST_RATIO, MOST_DISTANCE = 1e6, 1e9  # beyond, 32-bit files of points lose the near end
PROFILE = 40  # focal lengths that are tried for the error


@dataclass(frozen=True)
class Camera:
    """A pinhole camera whose axis goes through the middle of the image, and what its depth map means.

    Args:
        focal: focal length over half the image's width.
        near, far: distance along the axis that the near and the far end of the relative map stand for, 0 and 1 in either order.
        focal_range: what it may be where it was estimated, with the same chance as one standard deviation or more; None = given.
        angle: degrees, the mean angle between normals that was left; None = nothing was estimated.
        scaled: whether near and far are in metres, or whatever the user measures in; else the near end is at 1.
    """

    focal: float
    near: float
    far: float
    focal_range: tuple[float, float] | None = None
    angle: float | None = None
    scaled: bool = False

    @property
    def fov(self) -> float:
        """Horizontal field of view, degrees."""
        return fov_of(self.focal)

    def pixels(self, width: int) -> float:
        """Focal length in pixels of an image of this width."""
        return self.focal * width / 2

    def distances(self, depth: Array, space: str) -> Array:
        """Relative depth in ``space``, 0 to 1, as distances along the axis, float64."""
        if space == "disparity":
            return 1 / (1 / self.far + depth.astype(np.float64) * (1 / self.near - 1 / self.far))
        return self.near + depth.astype(np.float64) * (self.far - self.near)

    def words(self, width: int) -> str:
        """One line for people."""
        focal = f"field of view {self.fov:.1f}° (focal length {self.pixels(width):.1f} px of {width})"
        if self.focal_range is not None:
            low, high = sorted(fov_of(focal) for focal in self.focal_range)
            focal += f", estimated: {low:.1f}° to {high:.1f}° fit the normals as well, {self.angle:.1f}° off on average"
        unit = "" if self.scaled else " of the nearest distance; the scale is unknown"
        return f"{focal}; distances {self.near:.4g} to {self.far:.4g}{unit}"


def fov_of(focal: float) -> float:
    """Horizontal field of view in degrees of a focal length over half the image's width."""
    return 2 * math.degrees(math.atan(1 / focal))


def focal_of(fov: float, name: str = "fov") -> float:
    """Inverse of ``fov_of``. Raises UserError for no angle of a pinhole camera, which it calls ``name``."""
    if not LEAST_FOV <= fov < MOST_FOV:
        bounds = f"from {LEAST_FOV:g} to below {MOST_FOV:g}"
        raise UserError(f"{name} is {fov:g}: give the horizontal field of view in degrees, {bounds}")
    return 1 / math.tan(math.radians(fov) / 2)


def check_focal(focal: float, width: float = 2, name: str = "focal") -> float:
    """A focal length in pixels of an image of ``width`` -> over half the width.

    Raises:
        UserError: one whose field of view ``focal_of`` refuses.
    """
    least, most = (focal_of(fov) * width / 2 for fov in (math.nextafter(MOST_FOV, 0), LEAST_FOV))
    if not least <= focal <= most:
        raise UserError(f"{name} is {focal:g}: give {least:.3g} to {most:.3g} for an image {width:g} wide")
    return focal / (width / 2)


def check_depth_range(near: float, far: float, name: str = "depth_range") -> None:
    """Raise UserError for distances that no camera sees, which it calls ``name``."""
    if not 0 < near < far < math.inf:
        raise UserError(f"{name} is {near:g} {far:g}: give two rising numbers above 0, such as 0.5 8")
    if far > MOST_DISTANCE or far / near > MOST_RATIO:
        limits = f"the far end at most {MOST_RATIO:g} times the near one, and at most {MOST_DISTANCE:g}"
        raise UserError(f"{name} is {near:g} {far:g}: give two numbers such as 0.5 8, {limits}")


def find_camera(
    depth: Array,
    normal: Array | None,
    space: str,
    *,
    focal: float | None = None,
    depth_range: tuple[float, float] | None = None,
) -> Camera:
    """Take what is given of a camera, and estimate the rest.

    Args:
        depth: (H, W) relative, 0 to 1 in ``space``.
        normal: (H, W, 3) unit vectors, camera frame; None = none, and nothing can be estimated.
        space: "depth" or "disparity".
        focal: focal length over half the image's width; None = estimate it.
        depth_range: distances of the near and the far end; None = the near one is 1, and the far one is estimated.

    Raises:
        UserError: a range or a focal length that no camera has, or something to estimate and no normals, or a map
            too flat or broken.
    """
    if space not in DEPTH_SPACES:
        raise unknown_name("depth space", space, DEPTH_SPACES)
    if depth_range is not None:
        check_depth_range(*depth_range)
    if focal is not None:
        check_focal(focal)
    ratio = None if depth_range is None else depth_range[1] / depth_range[0]
    if focal is not None and depth_range is not None:
        return Camera(focal, *depth_range, scaled=True)
    if normal is None:
        missing = " and ".join(["the field of view"] * (focal is None) + ["the depth range"] * (ratio is None))
        raise UserError(f"has no normals to estimate {missing} from: give fov or focal, and depth_range")
    fit = _Fit(depth.astype(np.float64), normal.astype(np.float64), space)
    best, best_ratio, angle = fit.best(focal, ratio)
    near, far = depth_range or (1.0, best_ratio)
    possible = fit.possible(best, angle, ratio) if focal is None else None
    return Camera(best, near, far, possible, angle, depth_range is not None)


class _Fit:
    """The mean angle between the two kinds of normals, as a function of focal length and ratio."""

    def __init__(self, depth: Array, normal: Array, space: str) -> None:
        width = depth.shape[1]
        radius, away = max(1, round(width * WINDOW)), max(1, round(width * AWAY))
        self.low, self.extent = float(depth.min()), float(np.ptp(depth))
        mean = np.stack([uniform_filter(normal[..., c], 2 * radius + 1, mode="nearest") for c in range(3)], axis=-1)
        length = np.linalg.norm(mean, axis=-1)
        edges = binary_dilation(steps(depth, radius) | steps(depth, 1), iterations=away)
        used = (depth > depth.min()) & (depth < depth.max()) & ~edges & (length > AGREEMENT)
        if used.sum() < MIN_PIXELS or self.extent <= 0:
            raise UserError(
                f"{int(used.sum())} of {used.size} pixels show a smooth surface, too few to estimate a camera: give the field of "
                "view and the depth range (--fov and --depth_range; in Python focal and depth_range)"
            )
        family = NormalFamily(depth, space, radius)
        stride = max(1, int(used.sum()) // FIT_PIXELS)
        a, b, self._c = (plane[used][::stride] for plane in (family.a, family.b, family.c))
        vectors = (mean / np.maximum(length, 1e-9)[..., None])[used][::stride]
        self._across, self._squared, self._ahead = a * vectors[:, 0] + b * vectors[:, 1], a**2 + b**2, vectors[:, 2]

    def angle(self, log_focal: float, log_ratio: float) -> float:
        """Mean angle, degrees, at logarithms of the focal length and of ratio - 1."""
        focal, z = math.exp(log_focal), self._c + shift_of(1 + math.exp(log_ratio), self.low, self.extent)
        length = np.sqrt(focal**2 * self._squared + z**2)
        cosine = (focal * self._across + z * self._ahead) / np.maximum(length, 1e-30)
        return float(np.degrees(np.arccos(cosine.clip(-1, 1)).mean()))

    def best(self, focal: float | None, ratio: float | None) -> tuple[float, float, float]:
        """The best (focal length, ratio) with those that are given, and its angle."""
        if focal is not None:
            log_focal = math.log(focal)
            log_ratio, angle = self._best_ratio(log_focal)
        elif ratio is not None:
            log_ratio = math.log(ratio - 1)
            found = minimize_scalar(
                lambda x: self.angle(x, log_ratio), bounds=_FOCALS, method="bounded", options={"xatol": 1e-4}
            )
            log_focal, angle = float(found.x), float(found.fun)
        else:
            grid = itertools.product(np.linspace(*_FOCALS, 10), np.linspace(*_RATIOS, 12))
            start = min(grid, key=lambda point: self.angle(*point))
            options = {"maxfev": 200, "xatol": 1e-4, "fatol": 1e-6}
            bounds = [_FOCALS, _RATIOS]
            found = minimize(lambda x: self.angle(*x), start, method="Nelder-Mead", bounds=bounds, options=options)
            (log_focal, log_ratio), angle = found.x, float(found.fun)
        return math.exp(log_focal), 1 + math.exp(log_ratio), angle

    def possible(self, focal: float, angle: float, given: float | None) -> tuple[float, float]:
        """The range of focal lengths whose angle is nearly as good, each with the ratio ``given`` or its own best."""
        grid = np.linspace(*_FOCALS, PROFILE)
        angles = [self._best_ratio(x)[1] if given is None else self.angle(x, math.log(given - 1)) for x in grid]
        good = [math.exp(x) for x, each in zip(grid, angles, strict=True) if each <= AS_GOOD * angle]
        half = math.exp((grid[1] - grid[0]) / 2)  # of the grid, which the range is no finer than
        return min([*good, focal]) / half, max([*good, focal]) * half

    def _best_ratio(self, log_focal: float) -> tuple[float, float]:
        found = minimize_scalar(
            lambda x: self.angle(log_focal, x), bounds=_RATIOS, method="bounded", options={"xatol": 1e-3}
        )
        return float(found.x), float(found.fun)


_FOCALS = (math.log(FOCAL_RANGE[0]), math.log(FOCAL_RANGE[1]))
_RATIOS = (math.log(RATIO_RANGE[0] - 1), math.log(RATIO_RANGE[1] - 1))
