from __future__ import annotations

from collections.abc import Callable

import pytest
from analytic_scene import Scene, analytic_scene


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    return analytic_scene
