"""What every module has: draws that depend on the step and the process, and means over all that validation saw."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit.data.datamodule import numbered_generator

WORKER = Path(__file__).with_name("module_worker.py")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, processes: Any) -> dict[str, dict[str, Any]]:
    """What each process of a run wrote: alone_…, and that of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    runpy.run_path(str(WORKER))["train"](one)
    processes.run([str(WORKER), str(two)], size=2)
    alone = {f"alone_{path.stem}": path for path in one.iterdir()}
    return {name: json.loads(path.read_text()) for name, path in (alone | {p.stem: p for p in two.iterdir()}).items()}


def test_each_process_draws_its_own_unless_it_draws_for_all(said: dict[str, dict[str, Any]]) -> None:
    first = float(torch.rand((), generator=numbered_generator(3, 0)))
    assert {said[f"{name}_0"]["drawn"] for name in ("alone_Parts", "Parts", "SharedParts")} == {first}
    assert said["SharedParts_1"]["drawn"] == first
    assert said["Parts_1"]["drawn"] == float(torch.rand((), generator=numbered_generator(3, 0, 1))) != first


def test_validation_is_a_mean_over_what_all_processes_saw(said: dict[str, dict[str, Any]]) -> None:
    """Batches of one process: (1, 3), (5, 2). Of two: (1), (5); and (3), (2), which has nothing odd."""
    for process in ("alone_Parts_0", "Parts_0", "Parts_1"):
        assert said[process]["logged"] == pytest.approx({"val/loss": 11 / 4, "val/odd": 3.0})
        assert said[process]["of_one"] == pytest.approx(
            {"val/loss": 7.0, "val/odd": 7.0}
        )  # fewer samples than processes
