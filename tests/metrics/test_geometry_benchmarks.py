import io
import os

import numpy as np
import pytest
from PIL import Image

from mmdit.errors import UserError
from mmdit.metrics.geometry_benchmarks import BENCHMARKS, GeometrySamples


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def declared(descr, shape):
    """An .npy file that is a header alone."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def ramp(height, width, low, high):
    return np.linspace(low, high, height * width).reshape(height, width)


@pytest.fixture
def nyu(tmp_path):
    depth = np.full((480, 640), 2000, dtype=np.uint16)
    depth[100, 100:104] = [0, 1, 9999, 10000]  # metres 0, 0.001, 9.999, 10
    save(tmp_path / "test/kitchen_0004/rgb_0001.png", np.zeros((480, 640, 3), dtype=np.uint8))
    save(tmp_path / "test/kitchen_0004/depth_0001.png", depth)
    listed = "test/kitchen_0004/rgb_0001.png test/kitchen_0004/depth_0001.png test/kitchen_0004/filled_0001.png\n"
    (tmp_path / "list.txt").write_text(listed)
    return tmp_path


def test_nyu_depth(nyu):
    sample = GeometrySamples("nyuv2_depth", nyu, nyu / "list.txt")[0]
    assert sample.id == "test/kitchen_0004/rgb_0001.png"
    assert sample.target[0, 0] == 2.0
    assert sample.valid.sum() == (471 - 45) * (601 - 41) - 3  # within (0.001, 10), inside the crop
    assert sample.valid[45, 41]
    assert not sample.valid[44, 41]
    assert not sample.valid[45, 601]
    assert GeometrySamples("nyuv2_depth", nyu, nyu / "list.txt", crop="none")[0].valid.sum() == 480 * 640 - 3


@pytest.mark.parametrize(
    ("crop", "rows", "columns"),
    # int(0.3324324 * 352) = 117, int(0.91351351 * 352) = 321; int(0.40810811 * 352) = 143, int(0.99189189 * 352) = 349;
    # int(0.0359477 * 1216) = 43, int(0.96405229 * 1216) = 1172.
    [("eigen", (117, 321), (43, 1172)), ("garg", (143, 349), (43, 1172)), ("none", (0, 352), (0, 1216))],
)
def test_kitti_depth(tmp_path, crop, rows, columns):
    depth = np.full((375, 1242), 512, dtype=np.uint16)
    depth[23, 13] = 256  # the upper left corner of the benchmark's crop: 375 - 352 and (1242 - 1216) / 2
    depth[200:202, 600] = [80 * 256, 0]
    save(tmp_path / "2011_09_26/drive/image_02/data/0000000069.png", np.zeros((375, 1242, 3), dtype=np.uint8))
    save(tmp_path / "drive/proj_depth/groundtruth/image_02/0000000069.png", depth)
    (tmp_path / "list.txt").write_text(
        "2011_09_26/drive/image_02/data/0000000005.png None 721.5377\n"
        "2011_09_26/drive/image_02/data/0000000069.png drive/proj_depth/groundtruth/image_02/0000000069.png 721.5377\n"
    )
    samples = GeometrySamples("kitti_depth", tmp_path, tmp_path / "list.txt", crop)
    assert len(samples) == 1
    sample = samples[0]
    assert sample.rgb.shape == (352, 1216, 3)
    assert (sample.target[0, 0], sample.target[1, 0]) == (1.0, 2.0)
    inside = np.zeros((352, 1216), dtype=bool)
    inside[slice(*rows), slice(*columns)] = True
    inside[200 - 23 : 202 - 23, 600 - 13] = False  # 80 m and nothing
    np.testing.assert_array_equal(sample.valid, inside)


def test_eth3d_depth(tmp_path):
    depth = ramp(20, 30, 1, 9).astype("<f4")
    depth[3, 4] = np.inf
    save(tmp_path / "rgb/office/images/dslr_images/DSC_0219.JPG", np.zeros((20, 30, 3), dtype=np.uint8))
    path = tmp_path / "depth/office_dslr_depth/office/ground_truth_depth/dslr_images/DSC_0219.JPG"
    path.parent.mkdir(parents=True)
    depth.tofile(path)
    (tmp_path / "list.txt").write_text(
        f"rgb/office/images/dslr_images/DSC_0219.JPG {path.relative_to(tmp_path).as_posix()}\n"
    )
    samples = GeometrySamples("eth3d_depth", tmp_path, tmp_path / "list.txt")
    assert (~samples[0].valid).sum() == 1
    assert samples[0].target[19, 29] == 9
    depth[:-1].tofile(path)
    with pytest.raises(UserError, match=r"DSC_0219.JPG: holds 570 numbers, the image has 20 x 30"):
        samples[0]


def test_diode_depth_is_valid_where_its_mask_says(tmp_path):
    name = "indoors/scene_00021/scan_00189/00021_00189_indoors_200_010"
    mask = np.ones((6, 8))
    mask[0, :3] = 0
    depth = np.full((6, 8, 1), 0.1)  # nearer than the range: the mask alone counts
    depth[1, 1] = 0  # but here there is nothing to compare with
    save(tmp_path / f"{name}.png", np.zeros((6, 8, 3), dtype=np.uint8))
    save(tmp_path / f"{name}_depth.npy", depth)
    save(tmp_path / f"{name}_depth_mask.npy", mask)
    (tmp_path / "list.txt").write_text(f"{name}.png {name}_depth.npy {name}_depth_mask.npy\n")
    sample = GeometrySamples("diode_depth", tmp_path, tmp_path / "list.txt")[0]
    mask[1, 1] = 0
    np.testing.assert_array_equal(sample.valid, mask == 1)
    assert sample.target.shape == (6, 8)


def test_dsine_normals_come_into_our_frame(tmp_path):
    # Theirs: x right, y down, z forward, pointing away from the viewer. A wall that faces us is (0, 0, 1), a floor
    # (0, 1, 0), a wall on the left, which faces right, (-1, 0, 0). Ours: (0, 0, 1), (0, 1, 0), (1, 0, 0).
    theirs = np.array([[[0, 0, 1], [0, 1, 0], [-1, 0, 0], [-1, -1, -1]]])
    ours = np.array([[[0, 0, 1], [0, 1, 0], [1, 0, 0]]])
    save(tmp_path / "scene0532_00/000000_img.png", np.zeros((1, 4, 3), dtype=np.uint8))
    save(tmp_path / "scene0532_00/000000_normal.png", np.round((theirs + 1) * 127.5).astype(np.uint8))
    (tmp_path / "list.txt").write_text("scene0532_00/000000_img.png\n")
    sample = GeometrySamples("scannet_normal", tmp_path, tmp_path / "list.txt")[0]
    assert sample.valid.tolist() == [[True, True, True, False]]  # black: no normal
    np.testing.assert_allclose(sample.target[:, :3], ours, atol=0.005)


def test_bad_input(tmp_path, nyu):
    listed = nyu / "list.txt"
    with pytest.raises(UserError, match="unknown benchmark 'nyu_depth': did you mean 'nyuv2_depth'"):
        GeometrySamples("nyu_depth", nyu, listed)
    with pytest.raises(UserError, match="unknown crop of nyuv2_depth 'garg'"):
        GeometrySamples("nyuv2_depth", nyu, listed, crop="garg")
    with pytest.raises(UserError, match=r"nothing.txt: no such file"):
        GeometrySamples("nyuv2_depth", nyu, tmp_path / "nothing.txt")
    with pytest.raises(UserError, match=r"list.txt: .*not an image of this layout"):
        GeometrySamples("nyuv2_normal", nyu, listed)
    (tmp_path / "short.txt").write_text("image.png\n")
    with pytest.raises(UserError, match=r"short.txt: 'image.png' has 1 columns: a line names 3"):
        GeometrySamples("diode_depth", nyu, tmp_path / "short.txt")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"binary.txt: is not a text file"):
        GeometrySamples("nyuv2_depth", tmp_path, tmp_path / "binary.txt")
    with pytest.raises(UserError, match="lists no sample"):
        GeometrySamples("diode_depth", nyu, tmp_path / "empty.txt")
    (nyu / "test/kitchen_0004/depth_0001.png").unlink()
    with pytest.raises(UserError, match=r"depth_0001.png: no such file"):
        GeometrySamples("nyuv2_depth", nyu, listed)[0]
    save(nyu / "test/kitchen_0004/depth_0001.png", np.zeros((10, 10), dtype=np.uint16))
    with pytest.raises(UserError, match="480 x 640 pixels, not 10 x 10"):
        GeometrySamples("nyuv2_depth", nyu, listed)[0]
    with pytest.raises(UserError, match="less than the 352 x 1216 of KITTI"):
        GeometrySamples("kitti_depth", nyu, listed)[0]


@pytest.mark.parametrize(
    ("benchmark", "content", "reason"),
    [
        ("nyuv2_normal_marigold", b"no array", "not a readable .npy array"),
        ("nyuv2_normal_marigold", declared("<f8", (10**6, 10**6, 3)), "it declares float64"),
        ("nyuv2_normal_marigold", declared("<c16", (1, 1)), "holds complex128"),
        ("diode_depth", declared("|S4", (4, 4)), "holds text"),
        ("nyuv2_normal", b"no image", "not an image that Pillow can read"),
        ("nyuv2_normal", None, "is a FIFO"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, benchmark, content, reason):
    save(tmp_path / "a_img.png", np.zeros((4, 4, 3), dtype=np.uint8))
    name = "a_normal.png" if benchmark == "nyuv2_normal" else "a.npy"
    (tmp_path / "list.txt").write_text(f"a_img.png {name} {name}\n")
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{reason}") as error:
        GeometrySamples(benchmark, tmp_path, tmp_path / "list.txt")[0]
    assert "\n" not in str(error.value)


def test_every_benchmark_has_a_crop_it_knows():
    for benchmark in BENCHMARKS.values():
        assert benchmark.crop in benchmark.crops
        assert benchmark.modality in ("depth", "normal")
