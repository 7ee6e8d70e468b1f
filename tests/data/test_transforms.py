import numpy as np
import pytest
import torch

from mmdit.data.transforms import Draw, JointTransform, crop_and_resize
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codec
from mmdit.modalities.rgb import RGBCodec
from mmdit.modalities.segmentation import SegmentationCodec

CODECS = {name: build_codec(modality) for name, modality in MODALITIES.items()}


def _scene(height: int, width: int) -> dict[str, np.ndarray]:
    """Every modality tells the pixel's column, so that misalignment shows."""
    columns = np.broadcast_to(np.arange(width), (height, width))
    angle = columns / width
    return {
        "rgb": np.repeat(columns[..., None], 3, axis=2).astype(np.uint8),
        "depth": 1.0 + columns,
        "normal": np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=-1),
        "segmentation": columns % 64,
    }


def test_without_size_nothing_changes():
    raw = _scene(6, 9)
    encoded = JointTransform()(raw, CODECS)
    for name, array in raw.items():
        assert torch.equal(encoded[name], CODECS[name].encode(array))


@pytest.mark.parametrize("mirrored", [False, True])
def test_one_box_for_all_modalities(mirrored):
    encoded = JointTransform(8)(_scene(8, 40), CODECS)
    sign = -1 if mirrored else 1
    columns = np.arange(16, 24)[::sign]
    if mirrored:
        encoded = {name: CODECS[name].flip(image) for name, image in encoded.items()}
    assert np.array_equal(CODECS["rgb"].decode(encoded["rgb"][None])[0, 0, :, 0].astype(int), columns)
    assert np.array_equal(CODECS["segmentation"].decode(encoded["segmentation"][None])[0, 0], columns)
    np.testing.assert_allclose(encoded["normal"][0, 0], sign * np.sin(columns / 40), atol=1e-6)
    # depth grows with the column and is normalised over the crop alone
    assert np.array_equal(np.argsort(-encoded["depth"][0, 0].numpy()), np.argsort(columns))


def test_center_crop_keeps_the_aspect_ratio():
    assert JointTransform((32, 64)).draw(100, 120) == Draw(20, 0, 60, 120, 32, 64)
    assert JointTransform(64, crop="none").draw(100, 120) == Draw(0, 0, 100, 120, 64, 64)


def test_labels_and_depth_are_never_blended():
    labels = np.where(np.arange(30) < 15, 0, 40)[None].repeat(30, axis=0)
    resized = crop_and_resize(labels, Draw(0, 0, 30, 30, 7, 7), SegmentationCodec())
    assert set(np.unique(resized)) == {0, 40}
    assert resized.shape == (7, 7)


def test_rgb_downscaling_averages():
    checker = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    resized = crop_and_resize(checker, Draw(0, 0, 64, 64, 16, 16), RGBCodec())
    assert np.abs(resized.astype(int) - 128).max() <= 8


def test_nearest_takes_pixel_centres():
    ramp = np.arange(8)[None].repeat(8, axis=0)
    assert crop_and_resize(ramp, Draw(0, 0, 8, 8, 2, 4), SegmentationCodec()).tolist() == [[1, 3, 5, 7]] * 2
    assert crop_and_resize(ramp, Draw(0, 0, 8, 8, 8, 16), SegmentationCodec())[0].tolist() == sorted(
        [*range(8), *range(8)]
    )


def test_modalities_of_different_sizes_are_refused():
    raw = _scene(8, 8) | {"depth": np.ones((4, 4))}
    with pytest.raises(UserError, match=r"rgb 8 x 8, depth 4 x 4"):
        JointTransform()(raw, CODECS)


def test_wrong_arguments_are_refused():
    with pytest.raises(UserError, match=r"'centre'.*'center'"):
        JointTransform(8, crop="centre")
    with pytest.raises(UserError, match="image size"):
        JointTransform(0)
