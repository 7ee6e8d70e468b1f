import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.encoders.scene_detector import SceneDetector
from mmdit.errors import UserError
from mmdit.metrics.prompts.instrument import Instrument, find_instrument
from mmdit.sources.scenes.layout import CATEGORY_NAMES


def test_it_sees_what_real_scenes_hold(instrument, split):
    right = {"category": [], "colour": [], "iou": []}
    for index, _, objects in split:
        (seen,) = instrument.look([split.truth(index).maps["rgb"]])
        main = max(objects, key=lambda one: split.mask(one).sum())
        mask = split.mask(main)
        there = seen.at(mask)
        right["category"].append(there is not None and there.category == main.category)
        right["colour"].append(there is not None and there.colour_name == main.colour)
        foreground = split.foreground(index)
        right["iou"].append((foreground & seen.foreground).sum() / (foreground | seen.foreground).sum())
    assert np.mean(right["category"]) >= 0.9
    assert np.mean(right["colour"]) >= 0.9
    assert np.mean(right["iou"]) >= 0.8


def test_a_view_does_not_depend_on_the_batch(instrument, split):
    pictures = [split.truth(index).maps["rgb"] for index in range(5)]
    together = instrument.look(pictures)
    for picture, seen in zip(pictures, together, strict=True):
        (alone,) = instrument.look([picture])
        assert [each.category for each in alone.objects] == [each.category for each in seen.objects]
        for one, other in zip(alone.objects, seen.objects, strict=True):
            assert (one.mask != other.mask).sum() <= 2
    assert instrument.look([]) == []


def test_nothing_is_seen_in_an_empty_picture(instrument):
    (seen,) = instrument.look([np.full((64, 64, 3), 128, dtype=np.uint8)])
    assert seen.find("unicorn") is None
    assert seen.mean == pytest.approx(128 / 255)
    assert seen.at(np.zeros((64, 64), dtype=bool)) is None


def test_larger_pictures_are_shrunk(instrument, split):
    picture = split.truth(0).maps["rgb"]
    large = np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.NEAREST))
    small, same = instrument.look([large, picture])
    assert np.array_equal(small.picture, same.picture)
    mask = np.zeros((256, 256), dtype=bool)
    mask[:128] = True
    assert instrument.resize_mask(mask)[:32].all()
    assert not instrument.resize_mask(mask)[32:].any()


def test_small_groups_are_no_objects_and_colours_leave_the_rim_out():
    torch.manual_seed(0)
    detector = SceneDetector(["floor", "wall", "torus"], 32, patch_size=2, channels=(8,), blocks=(1,))
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[4:20, 4:20] = (200, 100, 50)
    picture[5:19, 5:19] = (250, 0, 0)
    labels = np.zeros((32, 32), dtype=np.int64)
    labels[4:20, 4:20], labels[28:30, 28:30] = 2, 2
    seen = Instrument(detector, min_area=0.01)._seen(picture, labels)
    (one,) = seen.objects
    assert one.area == 256
    assert one.colour == pytest.approx((250 / 255, 0, 0))
    assert one.colour_name == "red"
    assert (one.x, one.bottom) == pytest.approx((11.5 / 32, 19 / 32))
    assert seen.foreground.sum() == 260


def test_which_instrument_is_found(prompted, tmp_path):
    found = find_instrument(prompted, CATEGORY_NAMES)
    assert set(found.categories) == set(CATEGORY_NAMES)
    assert find_instrument(prompted, ["teapot"]) is None
    bundled = find_instrument(None, CATEGORY_NAMES)
    assert bundled is not None
    assert bundled.name == "mmdit/assets/scenes64/detector"  # wherever the package is
    SceneDetector(["floor", "teapot"], 32, patch_size=2, channels=(8,), blocks=(1,)).save_pretrained(tmp_path)
    assert find_instrument(prompted, ["teapot"], str(tmp_path)).categories == ["teapot"]
    with pytest.raises(UserError, match="does not know 'torus': it knows teapot"):
        find_instrument(prompted, ["torus"], str(tmp_path))
    with pytest.raises(UserError, match="no usable scene detector"):
        find_instrument(prompted, ["torus"], "nowhere")
