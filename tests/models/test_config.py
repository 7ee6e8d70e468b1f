from __future__ import annotations

import pytest

from mmdit.errors import UserError
from mmdit.models.config import SIZES, get_size


def test_published_sizes() -> None:
    assert get_size("XL") == {"hidden_size": 1152, "depth": 28, "num_heads": 16}  # SiT-XL, head dimension 72
    assert get_size("B") == {"hidden_size": 768, "depth": 12, "num_heads": 12}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_divide(name: str) -> None:
    size = get_size(name)
    assert size["hidden_size"] % size["num_heads"] == 0
    assert (size["hidden_size"] // size["num_heads"]) % 4 == 0  # 2-D positions need it


def test_a_size_is_a_copy_and_a_wrong_name_lists_the_nearest() -> None:
    get_size("B")["depth"] = 1
    assert SIZES["B"]["depth"] == 12
    with pytest.raises(UserError, match=r"'XXL'.*did you mean 'XL'"):
        get_size("XXL")
