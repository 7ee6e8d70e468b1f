"""Results of another request are told apart by one comparison, in one wording."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmdit.errors import UserError
from mmdit.storage.requests import Request

WANTED = {"seed": 1, "size": (64, 64), "scale": 2.0, "flags": {"a": True}, "device": "cpu"}


def _recorded(**changes: object) -> dict[str, object]:
    return json.loads(json.dumps({**WANTED, **changes, "versions": {"torch": "2"}}))


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({}, []),
        ({"device": "cuda"}, []),
        ({"scale": 2}, []),
        ({"seed": 0}, ["seed was 0, now 1"]),
        ({"seed": True}, ["seed was True, now 1"]),
        ({"size": [64, 32]}, ["size was [64, 32], now [64, 64]"]),
        ({"flags": {"a": 1}}, ["flags was {'a': 1}, now {'a': True}"]),
        ({"seed": None, "scale": "2"}, ["seed was None, now 1", "scale was '2', now 2.0"]),
    ],
)
def test_differences(changes: dict[str, object], differences: list[str]):
    assert Request(WANTED, ignored=["device"]).check(_recorded(**changes)) == differences


def test_what_an_older_version_did_not_record_is_not_compared():
    request = Request({"seed": 1, "class_id": 3}, optional=["class_id"])
    assert request.check({"seed": 1}) == []
    assert request.check({"seed": 1, "class_id": 4}) == ["class_id was 4, now 3"]
    assert request.check({"class_id": 3}) == ["seed was None, now 1"]


@pytest.mark.parametrize("previous", [None, [], "text", 3, {}])
def test_no_record_is_another_request(previous: object):
    with pytest.raises(UserError, match=r"^/x: holds samples of another request \(seed was None, now 1\): choose"):
        Request({"seed": 1}).refuse_other(previous, Path("/x"), "samples")


def test_long_values_are_cut():
    (difference,) = Request({"names": ["n" * 1000]}).check({"names": "m" * 1000})
    assert len(difference) < 300
