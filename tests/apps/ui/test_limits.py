"""What one visitor may ask for."""

from __future__ import annotations

import pytest
from PIL import Image

from mmdit.apps.ui.limits import MAX_SEED, Limits
from mmdit.apps.ui.tasks import Settings
from mmdit.errors import UserError

LIMITS = Limits(megapixels=1, side=100, steps=30, images=3, characters=10)


def test_settings_of_the_model_and_own_ones():
    assert Settings.read(LIMITS, steps=0, seed=7) == Settings(seed=7)
    assert Settings.read(LIMITS, steps=30, guidance_scale=1.5, seed=7.0, num_images=3.0) == Settings(30, 1.5, 7, 3)
    drawn = {Settings.read(LIMITS, seed=None).seed for _ in range(4)}
    assert len(drawn) == 4
    assert all(0 <= seed < MAX_SEED for seed in drawn)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 31}, "steps is 31: give a whole number from 1 to 30"),
        ({"steps": -1}, "steps is -1: give"),
        ({"steps": 2.5}, "steps is 2.5: give a whole number"),
        ({"num_images": 4}, "the number of images is 4: give a whole number from 1 to 3"),
        ({"seed": -1}, "seed is -1: give a whole number from 0"),
        ({"seed": 2**32}, "seed is"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        Settings.read(LIMITS, **values)


def test_texts_and_pixels():
    assert LIMITS.check_text("the prompt", " a torus  ") == "a torus"
    with pytest.raises(UserError, match="the prompt has 11 characters: give at most 10"):
        LIMITS.check_text("the prompt", "x" * 11)
    LIMITS.check_pixels("a.png", 1000, 1000)
    with pytest.raises(UserError, match=r"a\.png: has 1000 x 1001 pixels: give at most 1 million"):
        LIMITS.check_pixels("a.png", 1000, 1001)


def test_large_images_are_shrunk_and_others_are_not():
    assert LIMITS.shrink(Image.new("RGB", (400, 200))).size == (100, 50)
    small = Image.new("RGB", (100, 60))
    assert LIMITS.shrink(small) is small
