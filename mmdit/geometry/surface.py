"""A depth map and its normals as one surface: distances that agree with the normals, and the edges where it is torn.

With r the ray (x / f, y / f, -1) through a pixel, the plane through the pixel's point with normal n meets the neighbour's ray
where z_j / z_i = (r_i . n) / (r_j . n): so normals say differences of log z, with no unknown but the focal length f. The
surface is the least-squares one between them and the depth map (Nehab et al. 2005, "Efficiently combining positions and
normals", in log z), with neighbours that a step separates left out (Geman and McClure's weights).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import cg

Array = np.ndarray
DEPTH_WEIGHT = 0.02  # of a pixel's own log z beside a neighbour's difference
ROUNDS = 4
TEAR = 0.015  # of distance between neighbours, beyond what their normals say
GRAZING = 0.08  # least cosine between a normal and its ray that says a slope


@dataclass(frozen=True)
class Surface:
    """Points (H, W, 3) of the pixels in the camera frame, and which neighbours hang together.

    Args:
        points: x right, y up, z towards the viewer, the camera at 0.
        right, below: (H, W - 1) and (H - 1, W) bool, whether a pixel is joined to its neighbour.
    """

    points: Array
    right: Array
    below: Array


def rays(height: int, width: int, focal: float) -> Array:
    """(H, W, 3): directions through the centres of pixels, with z = -1; ``focal`` over half the width."""
    x = (np.arange(width) + 0.5 - width / 2) / (focal * width / 2)
    y = -(np.arange(height) + 0.5 - height / 2) / (focal * width / 2)
    return np.stack([*np.meshgrid(x, y), np.full((height, width), -1.0)], axis=-1)


def join(distances: Array, normal: Array | None, focal: float, *, refine: bool = True, tear: float = TEAR) -> Surface:
    """Join pixels to a surface.

    Args:
        distances: (H, W) along the axis, positive.
        normal: (H, W, 3) unit vectors, camera frame; None = none: the surface is taken as it is.
        focal: focal length over half the image's width.
        refine: whether distances are moved until they agree with the normals.
        tear: neighbours are apart where log z differs by more than this from what the normals say.
    """
    height, width = distances.shape
    directions = rays(height, width, focal)
    log_z = np.log(distances.astype(np.float64))
    slopes = _expected(normal, directions)
    if normal is not None and refine:
        log_z = _refined(log_z, slopes, tear)
    joined = [np.abs(np.diff(log_z, axis=axis) - slope) <= tear for slope, axis in zip(slopes, (1, 0), strict=True)]
    return Surface(np.exp(log_z)[..., None] * directions, *joined)


def _expected(normal: Array | None, directions: Array) -> tuple[Array, Array]:
    """Differences of log z to the right and to the lower neighbour that the normals say; 0 without them."""
    if normal is None:
        height, width = directions.shape[:2]
        return np.zeros((height, width - 1)), np.zeros((height - 1, width))
    return _along(normal, directions, 1), _along(normal, directions, 0)


def _along(normal: Array, directions: Array, axis: int) -> Array:
    first, second = (slice(None, -1), slice(1, None))
    i, j = ((slice(None), first), (slice(None), second)) if axis == 1 else ((first,), (second,))
    mean = normal[i] + normal[j]
    at_i = np.minimum((mean * directions[i]).sum(axis=-1), -GRAZING)
    at_j = np.minimum((mean * directions[j]).sum(axis=-1), -GRAZING)
    return np.log(at_i / at_j)


def _refined(log_z: Array, slopes: tuple[Array, Array], tear: float) -> Array:
    """Minimise DEPTH_WEIGHT |u - u_0|² + sum w (u_j - u_i - slope)², the weights w from the round before."""
    size = log_z.size
    numbers = np.arange(size).reshape(log_z.shape)
    i = np.concatenate([numbers[:, :-1].ravel(), numbers[:-1].ravel()])
    j = np.concatenate([numbers[:, 1:].ravel(), numbers[1:].ravel()])
    expected = np.concatenate([slope.ravel() for slope in slopes])
    edges = np.arange(len(i))
    difference: csr_matrix = coo_matrix(
        (np.concatenate([-np.ones(len(i)), np.ones(len(i))]), (np.tile(edges, 2), np.concatenate([i, j]))),
        shape=(len(i), size),
    ).tocsr()
    start = log_z.ravel()
    refined = start.copy()
    for _ in range(ROUNDS):
        residual = difference @ refined - expected
        weight = 1 / (1 + (residual / tear) ** 2) ** 2
        matrix = difference.T @ diags(weight) @ difference + DEPTH_WEIGHT * diags(np.ones(size))
        right = difference.T @ (weight * expected) + DEPTH_WEIGHT * start
        refined, _ = cg(matrix, right, x0=refined, rtol=1e-6, maxiter=2000, M=diags(1 / matrix.diagonal()))
    return refined.reshape(log_z.shape)
