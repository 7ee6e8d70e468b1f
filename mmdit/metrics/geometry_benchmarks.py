"""Public depth and normal benchmarks in the layouts of their evaluation code: list file -> RGB, ground truth, valid pixels.

Depth: the folders, lists, masks and crops of Marigold (arXiv 2312.02145, github.com/prs-eth/Marigold). Normals: those of DSINE
(arXiv 2403.00712, github.com/baegwangbin/DSINE) and of Marigold. The lists come with that code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmdit.errors import UserError, unknown_name
from mmdit.modalities.depth import DepthCodec
from mmdit.modalities.rgb import read_picture
from mmdit.modalities.stored import open_stored, regular_size
from mmdit.modalities.table import MODALITIES, codec_class

Array = np.ndarray
KITTI_HEIGHT, KITTI_WIDTH = 352, 1216

Crop = Callable[[int, int], tuple[slice, slice]]  # height and width of a map -> the part that is evaluated


def _part(top: float, bottom: float, left: float, right: float) -> Crop:
    """Shares of the height and the width between which pixels count."""

    def crop(height: int, width: int) -> tuple[slice, slice]:
        return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))

    return crop


def _nyu_eigen(height: int, width: int) -> tuple[slice, slice]:
    if (height, width) != (480, 640):
        raise UserError(f"the eigen crop of NYUv2 is for maps of 480 x 640 pixels, not {height} x {width}")
    return slice(45, 471), slice(41, 601)


WHOLE = {"none": _part(0.0, 1.0, 0.0, 1.0)}
KITTI_CROPS = {
    "eigen": _part(0.3324324, 0.91351351, 0.0359477, 0.96405229),  # Eigen et al., arXiv 1406.2283
    "garg": _part(0.40810811, 0.99189189, 0.03594771, 0.96405229),  # Garg et al., arXiv 1603.04992
    **WHOLE,
}


@dataclass(frozen=True)
class GeometrySample:
    """One image with its ground truth, cropped as the benchmark says.

    id: the image's path in the list; rgb: uint8 (H, W, 3); target: depth (H, W) in metres or normals (H, W, 3) in our
    camera frame (x right, y up, z towards the viewer), float64; valid: (H, W) bool, the pixels that count.
    """

    id: str
    rgb: Array
    target: Array
    valid: Array


@dataclass(frozen=True)
class GeometryBenchmark:
    """How one benchmark is stored and measured.

    modality: "depth" or "normal"; depth_range: metres, the pixels that count lie strictly inside and aligned depth is
    clipped to it; truth_range: where it is another for what counts; crop: name of the crop it is reported with;
    max_fit_width: pixels, see ``zero_shot.align``; average: "images" (mean of the images' means) or "pixels" (all pixels
    alike); files: one line of the list -> the files of a sample, image first, or None for a line that the benchmark passes
    over; read: those files but the image, and the image's height and width -> target and valid pixels; crops: by name; cut:
    crop of image and target.
    """

    modality: str
    files: Callable[[Sequence[str]], list[str] | None]
    read: Callable[[Sequence[Path], tuple[int, int]], tuple[Array, Array]]
    depth_range: tuple[float, float] = (0.0, math.inf)
    truth_range: tuple[float, float] | None = None
    crops: Mapping[str, Crop] = field(default_factory=lambda: WHOLE)
    crop: str = "none"
    cut: Callable[[Array, Path], Array] | None = None
    max_fit_width: int | None = None
    average: str = "images"

    @property
    def channels(self) -> int | None:
        """Of the ground truth; None = a map (H, W), depth."""
        return codec_class(MODALITIES[self.modality]).channels


def _columns(count: int) -> Callable[[Sequence[str]], list[str] | None]:
    """Marigold's lists: the first ``count`` words of a line; "None" stands for a missing file."""

    def files(words: Sequence[str]) -> list[str] | None:
        if len(words) < count:
            raise UserError(f"{' '.join(words)!r} has {len(words)} columns: a line names {count} files, image first")
        return None if "None" in words[:count] else list(words[:count])

    return files


def _dsine_files(words: Sequence[str]) -> list[str]:
    """DSINE's lists: scene/NAME_img.EXT, with the normals beside it in scene/NAME_normal.png."""
    image = words[0]
    stem, mark, _ = image.rpartition("_img.")
    if not mark:
        raise UserError(f"{image!r} is not an image of this layout: give one that ends in _img.png or _img.jpg")
    return [image, f"{stem}_normal.png"]


def _png_depth(units_per_metre: float) -> Callable[[Sequence[Path], tuple[int, int]], tuple[Array, Array]]:
    def read(files: Sequence[Path], size: tuple[int, int]) -> tuple[Array, Array]:
        values = DepthCodec().read(files[0], {"depth_scale": 1.0}).values
        depth = values.astype(np.float64) / units_per_metre
        return depth, np.ones(depth.shape, dtype=bool)

    return read


def _eth3d_depth(files: Sequence[Path], size: tuple[int, int]) -> tuple[Array, Array]:
    """Bare float32 in rows of the image's size, infinity where nothing was measured."""
    num_bytes = regular_size(files[0])
    if num_bytes != 4 * size[0] * size[1]:
        raise UserError(f"{files[0]}: holds {num_bytes / 4:g} numbers, the image has {size[0]} x {size[1]} pixels")
    depth = np.fromfile(files[0], dtype="<f4").reshape(size).astype(np.float64)
    depth[~np.isfinite(depth)] = 0
    return depth, np.ones(size, dtype=bool)


def _diode_depth(files: Sequence[Path], size: tuple[int, int]) -> tuple[Array, Array]:
    """The mask says which pixels count, whatever the range; a pixel without a depth never counts."""
    depth, mask = (np.squeeze(_array(path)) for path in files)
    return depth.astype(np.float64), mask.astype(bool)


def _npy_normal(files: Sequence[Path], size: tuple[int, int]) -> tuple[Array, Array]:
    """Vectors in our frame, (0, 0, 0) where the file has none."""
    normal = _array(files[0]).astype(np.float64)
    return normal, np.linalg.norm(np.atleast_3d(normal), axis=-1) > 0


def _dsine_normal(files: Sequence[Path], size: tuple[int, int]) -> tuple[Array, Array]:
    """8 bits, 255 (n + 1) / 2, black where none is known; x right, y down, z forward, and pointing away from the viewer.

    A wall that faces the viewer is (0, 0, 1) there as here. Turned round, (x, y, z) becomes (-x, -y, -z); in our axes
    y and z change their signs once more.
    """
    image = open_stored(files[0]).image
    if image is None or image.mode != "RGB":
        found = "this file holds an array" if image is None else f"this image has mode {image.mode!r}"
        raise UserError(f"{files[0]}: a normal map has three 8-bit channels, {found}")
    values = np.asarray(image)
    outward = values.astype(np.float64) / 255 * 2 - 1
    return outward * np.array([-1.0, 1.0, 1.0]), values.astype(np.int64).sum(axis=-1) > 0


def _kitti_cut(array: Array, path: Path) -> Array:
    """The crop of KITTI's depth benchmark: the lower 352 rows, and the middle 1216 columns."""
    height, width = array.shape[:2]
    if height < KITTI_HEIGHT or width < KITTI_WIDTH:
        raise UserError(f"{path}: has {height} x {width} pixels, less than the {KITTI_HEIGHT} x {KITTI_WIDTH} of KITTI")
    top, left = height - KITTI_HEIGHT, int((width - KITTI_WIDTH) / 2)
    return array[top : top + KITTI_HEIGHT, left : left + KITTI_WIDTH]


BENCHMARKS: dict[str, GeometryBenchmark] = {
    "nyuv2_depth": GeometryBenchmark(
        "depth", _columns(2), _png_depth(1000), (1e-3, 10.0), crops={"eigen": _nyu_eigen, **WHOLE}, crop="eigen"
    ),
    "kitti_depth": GeometryBenchmark(
        "depth",
        _columns(2),
        _png_depth(256),
        (1e-5, 80.0),
        crops=KITTI_CROPS,
        crop="eigen",
        cut=_kitti_cut,
    ),
    "eth3d_depth": GeometryBenchmark("depth", _columns(2), _eth3d_depth, (1e-5, math.inf), max_fit_width=1024),
    "scannet_depth": GeometryBenchmark("depth", _columns(2), _png_depth(1000), (1e-3, 10.0)),
    "diode_depth": GeometryBenchmark("depth", _columns(3), _diode_depth, (0.6, 350.0), (0.0, math.inf)),
    "nyuv2_normal": GeometryBenchmark("normal", _dsine_files, _dsine_normal, average="pixels"),
    "scannet_normal": GeometryBenchmark("normal", _dsine_files, _dsine_normal, average="pixels"),
    "nyuv2_normal_marigold": GeometryBenchmark("normal", _columns(2), _npy_normal),
    "scannet_normal_marigold": GeometryBenchmark("normal", _columns(2), _npy_normal),
    "ibims_normal_marigold": GeometryBenchmark("normal", _columns(2), _npy_normal),
    "diode_normal_marigold": GeometryBenchmark("normal", _columns(2), _npy_normal),
}


class GeometrySamples:
    """The samples of one benchmark, in the order of its list.

    Args:
        name: one of ``BENCHMARKS``.
        root: folder that the paths of the list are relative to.
        list_file: text, a sample per line.
        crop: another of the benchmark's crops than the one it is reported with; None = that one.
        num_samples: the first so many; None = all.

    Raises:
        UserError: an unknown name or crop, or a list that is missing, empty or of another layout; while reading, a file
            that is missing, damaged, or of another size than its image.
    """

    def __init__(
        self, name: str, root: Path, list_file: Path, crop: str | None = None, num_samples: int | None = None
    ) -> None:
        if name not in BENCHMARKS:
            raise unknown_name("benchmark", name, BENCHMARKS)
        self.benchmark = BENCHMARKS[name]
        self.crop = self.benchmark.crop if crop is None else crop
        if self.crop not in self.benchmark.crops:
            raise unknown_name(f"crop of {name}", self.crop, self.benchmark.crops)
        self.root = root
        try:
            lines = [line.split() for line in _existing(list_file).read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError:
            raise UserError(f"{list_file}: is not a text file; the list has one sample per line") from None
        try:
            samples = [self.benchmark.files(words) for words in lines if words]
        except UserError as error:
            raise UserError(f"{list_file}: {error}") from None
        self.samples = [files for files in samples if files is not None][:num_samples]
        if not self.samples:
            raise UserError(f"{list_file}: lists no sample of {name}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> GeometrySample:
        names = self.samples[index]
        image, *others = (self.root / name for name in names)
        rgb = read_picture(image)
        target, valid = self.benchmark.read(others, rgb.shape[:2])
        shape = () if self.benchmark.channels is None else (self.benchmark.channels,)
        if valid.ndim != 2 or target.shape != (*valid.shape, *shape):
            raise UserError(f"{others[0]}: has shape {target.shape}, mask {valid.shape}: not one {names[0]}'s map has")
        if self.benchmark.cut is not None:
            rgb, target, valid = (self.benchmark.cut(array, image) for array in (rgb, target, valid))
        if self.benchmark.channels is None:
            valid = valid & self._in_range(target) & self._inside(valid.shape)
        return GeometrySample(names[0], rgb, target, valid)

    def _in_range(self, depth: Array) -> Array:
        low, high = self.benchmark.truth_range or self.benchmark.depth_range
        return (depth > low) & (depth < high)

    def _inside(self, size: tuple[int, int]) -> Array:
        """True inside the crop that is evaluated."""
        inside = np.zeros(size, dtype=bool)
        inside[self.benchmark.crops[self.crop](*size)] = True
        return inside


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path


def _array(path: Path) -> Array:
    array = open_stored(path).array
    if array is None:
        raise UserError(f"{path}: is an image: give a .npy array")
    return array
