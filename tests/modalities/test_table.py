"""The table and the codecs it names."""

from __future__ import annotations

import pytest
import torch

from mmdit.errors import UserError
from mmdit.modalities import CODECS, MODALITIES, Modality, build_codec


def test_every_default_modality_builds_its_codec():
    for modality in MODALITIES.values():
        assert isinstance(build_codec(modality), CODECS[modality.codec])


def test_unknown_codec_and_setting_are_user_errors():
    with pytest.raises(UserError, match=r"codec 'dpth'.*'depth'"):
        build_codec(Modality("depth", codec="dpth"))
    with pytest.raises(UserError, match=r"'rgb'.*space"):
        build_codec(Modality("rgb", codec="rgb", settings={"space": "depth"}))


@pytest.mark.parametrize("name", ["rgb", "depth", "normal", "segmentation"])
def test_flip_is_its_own_inverse(name):
    images = torch.randn(2, 3, 4, 5)
    codec = build_codec(MODALITIES[name])
    assert torch.equal(codec.flip(codec.flip(images)), images)
    if name != "normal":
        assert torch.equal(codec.flip(images), images.flip(-1))
