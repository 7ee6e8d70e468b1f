"""``--depth_values``: what the commands take for it."""

from __future__ import annotations

from typing import Literal

DepthValues = Literal["auto", "metric", "relative", "near_white"]
