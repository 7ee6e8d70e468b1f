import numpy as np
import pytest
from PIL import Image

from mmdit.data.transforms import JointTransform, crop_and_resize
from mmdit.errors import UserError
from mmdit.modalities.normal import unit_vectors
from mmdit.modalities.rgb import RGBCodec
from mmdit.sources.labelling.images import LABELLING_SIDE, ImagesToLabel, find_images, fit_labels


def _save(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (1, 2, 3)).save(path)


def test_class_folders(tmp_path):
    for name in ("n02/b.JPEG", "n02/a.JPEG", "n01/c.png", "n01/deep/d.jpg", ".cache/x.png", "n01/.hidden.png"):
        _save(tmp_path / name)
    (tmp_path / "n01/notes.txt").write_text("no image")
    (tmp_path / "n03").symlink_to(tmp_path / "n02")  # a linked class folder counts
    (tmp_path / "n01/loop").symlink_to(tmp_path)  # a link to a folder above does not
    found = [(image.id, image.category) for image in find_images(tmp_path)]
    assert found == [
        ("n01/c", "n01"),
        ("n01/deep/d", "n01"),
        ("n02/a", "n02"),
        ("n02/b", "n02"),
        ("n03/a", "n03"),
        ("n03/b", "n03"),
    ]


def test_flat_folder_and_names_that_differ_in_the_suffix(tmp_path):
    for name in ("a.jpg", "a.png", "b.webp"):
        _save(tmp_path / name)
    assert [(image.id, image.category) for image in find_images(tmp_path)] == [
        ("a.jpg", None),
        ("a.png", None),
        ("b", None),
    ]


def test_nothing_to_label_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="no image in it"):
        find_images(tmp_path)


def test_what_is_stored_and_what_is_labelled_show_the_same_box(tmp_path, pixels):
    picture = pixels(0, 40, 60)
    Image.fromarray(picture).save(tmp_path / "a.png")
    (item,) = ImagesToLabel(find_images(tmp_path), size=16)
    expected = crop_and_resize(picture, JointTransform(16).draw(40, 60), RGBCodec())
    np.testing.assert_array_equal(item.rgb, expected)
    np.testing.assert_array_equal(item.view, picture[:, 10:50])
    (whole,) = ImagesToLabel(find_images(tmp_path))
    np.testing.assert_array_equal(whole.rgb, picture)
    np.testing.assert_array_equal(whole.view, picture)


def test_large_images_are_labelled_smaller(tmp_path):
    _save(tmp_path / "a.png", (LABELLING_SIDE * 2, 100))
    (item,) = ImagesToLabel(find_images(tmp_path))
    assert item.rgb.shape == (100, LABELLING_SIDE * 2, 3)
    assert item.view.shape == (50, LABELLING_SIDE, 3)


def test_an_image_that_cannot_be_read_has_a_problem(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"<html>")
    items = list(ImagesToLabel(find_images(tmp_path)))
    assert [item.problem for item in items] == ["the file is empty", "not an image that Pillow can read"]
    assert all(item.rgb is None and item.view is None for item in items)


def test_labels_made_smaller_are_pixels_of_the_original():
    rng = np.random.default_rng(0)
    depth, labels = rng.uniform(1, 9, (12, 18)).astype(np.float32), rng.integers(0, 9, (12, 18))
    np.testing.assert_array_equal(fit_labels(depth, "depth", 4, 6), depth[1::3, 1::3])
    np.testing.assert_array_equal(fit_labels(labels, "segmentation", 4, 6), labels[1::3, 1::3])
    assert fit_labels(depth, "depth", 12, 18) is depth


def test_labels_made_larger():
    ramp = np.arange(8, dtype=np.float32)[None].repeat(4, axis=0)
    larger = fit_labels(ramp, "depth", 8, 16)
    # Pixel centres: column j of 16 lies at (j + 0.5) / 2 - 0.5 of 8.
    np.testing.assert_allclose(larger[:, 1:-1], ((np.arange(16) + 0.5) / 2 - 0.5)[None, 1:-1].repeat(8, 0), atol=1e-6)
    labels = np.array([[1, 5], [7, 2]])
    np.testing.assert_array_equal(fit_labels(labels, "segmentation", 4, 4), labels.repeat(2, axis=0).repeat(2, axis=1))
    normals = np.zeros((1, 2, 3), np.float32)
    normals[0, 0, 0] = normals[0, 1, 1] = 1
    found = fit_labels(normals, "normal", 1, 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(found[0, 1], [3 / 10**0.5, 1 / 10**0.5, 0], atol=1e-6)  # (0.75, 0.25, 0), unit


def test_unit_vectors():
    found = unit_vectors(np.array([[3.0, 0, 4.0], [1e-5, 0, 0]]))
    np.testing.assert_allclose(found, [[0.6, 0, 0.8], [0, 0, 0]], atol=1e-7)
    assert found.dtype == np.float32
