"""The first run on a GPU, rehearsed on the CPU, and what it does where there is none or where something fails."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmdit_kernels.dispatch import interpreting

FOLDER = Path(__file__).parents[2] / "kernels" / "benchmarks"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture
def first_run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("MMDIT_KERNELS_TUNED", "")  # restored afterwards: the script sets it
    import first_run

    return first_run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run")
def test_no_gpu_is_one_line(
    first_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as leave:
        first_run.main(["--output", str(tmp_path / "results")])
    assert leave.value.code == 2
    assert capsys.readouterr().err == "error: this benchmark needs a CUDA or ROCm GPU, and torch sees none\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], r"--minutes is 0.0: give more than 0"),
        (["--wheels", "."], r"--wheels .*: this folder has no wheel"),
        (["--only", "speed"], r"invalid choice: 'speed'"),
    ],
)
def test_bad_options(
    first_run: ModuleType, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leave:
        first_run.main(["--output", str(tmp_path), *arguments])
    assert leave.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@needs_triton
def test_output_that_cannot_be_a_folder(
    first_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness

    monkeypatch.setattr(harness, "require_gpu", lambda: None)
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(SystemExit) as leave:
            first_run.main(["--output", str(path)])
        assert leave.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: --output {path} cannot be a folder: ")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_that_is_interrupted_keeps_its_rows(
    first_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections run in their own order, whatever that of ``--only``; the first row is saved, the rest is not begun."""
    import harness
    from first_run_rows import Report, Row

    def rows_of(section: str, *_: Any) -> Iterator[Row]:
        yield Row(section, "op", "shape", "float32", "forward", "mmdit_kernels", milliseconds=1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "require_gpu", lambda: None)
    monkeypatch.setattr(first_run, "environment", lambda rehearse: {"gpu": "none"})
    monkeypatch.setattr(first_run, "rows_of", rows_of)
    with pytest.raises(SystemExit) as leave:
        first_run.main(["--output", str(tmp_path), "--only", "step", "adaln"])
    assert leave.value.code == 130
    saved = Report.load(tmp_path)
    assert [row.section for row in saved.rows] == ["adaln"]
    assert {name: state["status"] for name, state in saved.sections.items()} == {"adaln": "interrupted"}
    with (tmp_path / "first_run.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    assert "interrupted: saved what there is in" in capsys.readouterr().out


@needs_triton
@pytest.mark.skipif(interpreting(), reason="the script starts the interpreter itself")
def test_rehearsal(tmp_path: Path) -> None:
    """Every section runs to its end at toy sizes; what cannot run on the CPU (cuDNN) leaves a row that says why."""
    root = FOLDER.parents[1]
    path = os.pathsep.join((str(root), str(root / "kernels")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("MMDIT_KERNELS", None)
    command = [sys.executable, str(FOLDER / "first_run.py"), "--rehearse", "--minutes", "99", "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    state = json.loads((tmp_path / "first_run.json").read_text())
    assert {name: section["status"] for name, section in state["sections"].items()} == dict.fromkeys(
        ("correctness", "attention", "adaln", "jvp", "tuning", "attention tuned", "adaln tuned", "jvp tuned", "block",
         "step"), "done",
    )  # fmt: skip
    with (tmp_path / "first_run.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(state["rows"])
    checks = [row for row in rows if row["section"] == "correctness"]
    assert {row["verdict"] for row in checks} == {"met"}
    assert {"output 0", "d q", "d qkv", "d q_weight", "tangent 0", "tangent 1", "d gate", "repeat"} <= {
        row["direction"] for row in checks
    }
    timed = {(row["section"], row["implementation"]) for row in rows if row["milliseconds"]}
    assert {("attention", "sdpa flash"), ("attention", "compiled reference"), ("adaln", "compiled torch"),
            ("jvp", "sdpa math"), ("attention tuned", "mmdit_kernels"), ("block", "mmdit_kernels compiled"),
            ("step", "sdpa compiled")} <= timed  # fmt: skip
    cudnn = [row for row in rows if row["implementation"] == "sdpa cudnn"]
    assert cudnn
    assert all("No viable backend" in row["note"] and not row["milliseconds"] for row in cudnn)
    kernels = {row["op"] for row in rows if row["section"] == "tuning"}
    assert {
        "attention_forward",
        "attention_backward",
        "attention_jvp",
        "adaln_forward",
        "adaln_backward",
        "adaln_jvp",
    } <= kernels
    assert f"{len(checks)} checks, 0 missed" in done.stdout


def make_report(first_run: ModuleType, folder: Path, minutes: float = 1.0) -> Any:
    from first_run_rows import Report

    return Report(folder, {"gpu": "none"}, time.time(), minutes)


def test_a_section_that_fails_keeps_its_rows_and_the_next_one_runs(
    first_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from first_run_rows import REHEARSAL, Report, Row

    def rows_of(section: str, *_: Any) -> Iterator[Row]:
        yield Row(section, "op", "shape", "float32", "forward", "mmdit_kernels", milliseconds=1.0)
        saved = Report.load(tmp_path)
        assert saved.rows[-1].section == section  # each row is on the disk before the next is measured
        if section == "first":
            raise RuntimeError("no such thing\nmore")
        yield Row(section, "op", "shape", "float32", "forward", "torch", milliseconds=2.0)

    monkeypatch.setattr(first_run, "rows_of", rows_of)
    report = make_report(first_run, tmp_path)
    for section in ("first", "second"):
        first_run.run_section(section, time.time() + 60, report, REHEARSAL)
    first_run.run_section("third", time.time() - 1, report, REHEARSAL)
    assert [row.section for row in report.rows] == ["first", "second", "second"]
    again = Report.load(tmp_path)
    assert again == report
    statuses = {name: section["status"] for name, section in again.sections.items()}
    assert statuses == {
        "first": "failed: RuntimeError: no such thing",
        "second": "done",
        "third": "skipped: out of time",
    }
    assert "no such thing" in again.sections["first"]["traceback"]
    lines = list(first_run.summary(report))
    assert "  first: failed: RuntimeError: no such thing" in lines
    assert "  second op shape float32 forward: 1.000 ms, 2.00x of torch" in lines


def test_a_section_stops_when_its_time_is_over(
    first_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from first_run_rows import REHEARSAL, Row

    def rows_of(section: str, *_: Any) -> Iterator[Row]:
        while True:
            time.sleep(0.02)
            yield Row(section, "op", "shape", "float32", "forward", "torch")

    monkeypatch.setattr(first_run, "rows_of", rows_of)
    report = make_report(first_run, tmp_path)
    first_run.run_section("attention", time.time() + 0.1, report, REHEARSAL)
    assert report.sections["attention"]["status"] == "stopped: out of time"
    assert 1 <= len(report.rows) <= 6


def test_wheels_are_unpacked_on_the_path(
    first_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with zipfile.ZipFile(tmp_path / "carried-1.0-py3-none-any.whl", "w") as file:
        file.writestr("carried_in_a_wheel/__init__.py", "value = 3\n")
    first_run.unpack(tmp_path, tmp_path / "unpacked")
    import carried_in_a_wheel

    assert carried_in_a_wheel.value == 3
