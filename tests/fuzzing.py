"""Strategies that damage what is right: bytes of files, and values of JSON.

``MMDIT_FUZZ_EXAMPLES`` sets how many inputs each test tries (150 in the suite, 20,000 and more in a long run).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("MMDIT_FUZZ_EXAMPLES", "150"))
SEEDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

_NUMBERS = st.sampled_from([0, -1, 1, 2, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30])


@st.composite
def damaged(draw: st.DrawFn, whole: Sequence[bytes]) -> bytes:
    """One of ``whole`` after a few changes: flipped, removed, repeated, foreign and numeric bytes; a part of another."""
    content = bytearray(draw(st.sampled_from(list(whole))))
    for _ in range(draw(st.integers(1, 6))):
        size = len(content)
        place = draw(st.integers(0, max(size - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "drop", "insert", "number", "repeat", "splice"])):
            case "flip" if size:
                content[place] ^= draw(st.integers(1, 255))
            case "cut":
                del content[place:]
            case "drop":
                del content[place : place + draw(st.integers(1, 64))]
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=16))
            case "number":
                width = draw(st.sampled_from([1, 2, 4, 8]))
                value = draw(_NUMBERS) % 256**width
                content[place : place + width] = value.to_bytes(width, draw(st.sampled_from(["little", "big"])))
            case "repeat":
                content[place:place] = content[place : place + draw(st.integers(1, 64))] * draw(st.integers(1, 8))
            case "splice":
                other = draw(st.sampled_from(list(whole)))
                start = draw(st.integers(0, len(other)))
                content[place:] = other[start:]
    return bytes(content)


json_scalars = st.one_of(
    st.none(),
    st.booleans(),
    _NUMBERS,
    st.integers(-10, 5000),
    st.sampled_from([0.0, -1.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")]),
    st.text(max_size=8),
    st.sampled_from(["payload", "payload.X", "os", "diffusers", "AutoencoderKL", "rgb", "depth", "cpu", "../x", "\0"]),
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed_json(draw: st.DrawFn, whole: Sequence[Any]) -> Any:
    """One of ``whole`` with a few of its values replaced, removed or moved to another key."""
    values = {"": copy.deepcopy(draw(st.sampled_from(list(whole))))}
    for _ in range(draw(st.integers(1, 3))):
        place: Any = values
        key: Any = ""
        while isinstance(place[key], dict | list) and place[key] and draw(st.booleans() | st.just(True)):
            place = place[key]
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place, dict) and key != "" and draw(st.integers(0, 4)) == 0:
            moved = place.pop(key)
            if draw(st.booleans()):
                place[draw(st.text(max_size=6) | st.sampled_from(["auto_map", "_class_name", "vae", "depth"]))] = moved
        else:
            place[key] = draw(json_values)
    return values[""]
