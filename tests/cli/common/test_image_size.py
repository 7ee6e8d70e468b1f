from __future__ import annotations

import pytest

from mmdit.cli.common.image_size import read_size
from mmdit.errors import UserError


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("128x192", (128, 192)),
        ("96X128", (96, 128)),
        ("64", 64),
        ("64x64", 64),
        (64, 64),
        ((8, 4), (8, 4)),
        (None, None),
    ],
)
def test_read_size(given, size):
    assert read_size(given) == size


@pytest.mark.parametrize("given", ["", "x", "12x", "12 x 8", "0", "8x0", "-8", "8x8x8", "99999", "8.5", "٣"])
def test_other_sizes_are_refused(given):
    with pytest.raises(UserError, match=r"--size is .*: give height x width in pixels, such as 128x192"):
        read_size(given)
