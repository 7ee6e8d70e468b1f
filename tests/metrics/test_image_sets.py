import zipfile

import numpy as np
import pytest
from PIL import Image

from mmdit.errors import UserError
from mmdit.metrics.image_sets import open_images, write_npz


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)


def read(path, batch_size=3):
    found = open_images(path)
    batches = list(found.batches(batch_size))
    assert sum(map(len, batches)) == len(found)
    return np.concatenate(batches)


def test_written_files_are_numpys(tmp_path, images):
    labels = np.arange(7)
    write_npz(tmp_path / "a.npz", iter([images[:5], images[5:]]), images.shape, labels)
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        np.testing.assert_array_equal(arrays["arr_1"], labels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpys_files_are_read(tmp_path, images, save):
    save(tmp_path / "a.npz", images)
    np.testing.assert_array_equal(read(tmp_path / "a.npz"), images)
    assert open_images(tmp_path / "a.npz").statistics == {}


def test_statistics_with_and_without_images(tmp_path, images):
    mean, covariance = np.arange(3.0), np.eye(3)
    np.savez(tmp_path / "a.npz", arr_0=images, mu=mean, sigma=covariance)
    np.savez(tmp_path / "b.npz", mu=mean, sigma=covariance)
    for name, count in (("a.npz", 7), ("b.npz", 0)):
        found = open_images(tmp_path / name)
        assert len(found) == count
        assert sum(map(len, found.batches(2))) == count
        np.testing.assert_array_equal(found.statistics["mu"], mean)
        assert found.statistics.keys() == {"mu", "sigma"}


def test_a_folder_of_images_in_the_order_of_paths(tmp_path, images):
    for number, image in enumerate(images):
        folder = tmp_path / "set" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "set" / "notes.txt").write_text("no image")
    np.testing.assert_array_equal(read(tmp_path / "set"), images[[0, 2, 4, 6, 1, 3, 5]])
    Image.fromarray(images[0, :2]).save(tmp_path / "set" / "class1" / "9.png")
    with pytest.raises(UserError, match=r"9.png: has 2 x 6 pixels, .*0.png 4 x 6"):
        read(tmp_path / "set")


def test_bad_files(tmp_path, images):
    with pytest.raises(UserError, match="no such file or folder"):
        open_images(tmp_path / "nothing.npz")
    with pytest.raises(UserError, match="holds no image"):
        open_images(tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", images)
    for name in ("text.npz", "array.npy"):
        with pytest.raises(UserError, match=r"not a readable .npz file"):
            open_images(tmp_path / name)
    np.savez(tmp_path / "floats.npz", images.astype(np.float32))
    np.savez(tmp_path / "grey.npz", images[..., 0])
    np.savez(tmp_path / "objects.npz", np.array([{"a": 1}], dtype=object))
    for name in ("floats.npz", "grey.npz", "objects.npz"):
        with pytest.raises(UserError, match="arr_0 holds"):
            open_images(tmp_path / name)
    np.savez(tmp_path / "texts.npz", mu=np.array(["a"]))
    with pytest.raises(UserError, match=r"texts.npz: holds text"):
        open_images(tmp_path / "texts.npz")
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive, archive.open("mu.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with pytest.raises(UserError, match=r"large.npz: .*it declares float32 \(1000000000000,\)"):
        open_images(tmp_path / "large.npz")
    np.savez(tmp_path / "other.npz", pictures=images)
    with pytest.raises(UserError, match="holds pictures; images are in arr_0"):
        open_images(tmp_path / "other.npz")


def test_an_array_that_ends_early(tmp_path, images):
    np.save(tmp_path / "a.npy", images)
    content = (tmp_path / "a.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", content[:-100])
    with pytest.raises(UserError, match="truncated: arr_0 ends within image 5"):  # 72 bytes an image
        read(tmp_path / "a.npz", 7)
