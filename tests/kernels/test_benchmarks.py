"""With no GPU every benchmark leaves with 2 and one clear line."""

from __future__ import annotations

import csv
import importlib.util
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmdit_kernels.dispatch import interpreting

FOLDER = Path(__file__).parents[2] / "kernels" / "benchmarks"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the benchmark would run")
@pytest.mark.parametrize("name", ["run", "bench_attention", "bench_adaln", "bench_model", "tune"])
def test_no_gpu_is_one_line_and_exit_code_2(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as leave:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert leave.value.code == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "error: this benchmark needs a CUDA or ROCm GPU, and torch sees none\n"


def test_a_report_compares_with_the_goals_and_saves_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With facts of a machine made up: the goal counts the rival it names, the speedup the best of all."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import harness

    monkeypatch.setattr(harness, "environment", lambda: {"gpu": "none", "driver": "1", "torch": "2", "triton": "3"})
    monkeypatch.setattr(harness, "copy_limit", lambda: 1000.0)
    monkeypatch.setattr(harness, "product_limit", lambda dtype: 100.0)

    def row(name: str, milliseconds: float | None, direction: str = "forward+backward") -> harness.Row:
        measured = harness.Row("attention", "d72 N256", "bfloat16", direction, name, milliseconds)
        return harness.add_work(measured, flops=5e10)

    rows = [row("mmdit_kernels", 1.0), row("sdpa flash", 1.3), row("sdpa cudnn", 1.2), row("flex", 0.9),
            row("sdpa efficient", None), row("mmdit_kernels", 2.0, "forward")]  # fmt: skip
    saved_while_measuring = []

    def measured() -> Iterator[harness.Row]:
        for entry in rows:
            yield entry
            saved_while_measuring.append(len((tmp_path / "attention.csv").read_text().splitlines()))

    goals = (harness.Goal("attention", "d72 ", "sdpa", 1.15, share=0.5), harness.Goal("attention", "d64", "sdpa", 9.0))
    harness.report("attention", measured(), goals, tmp_path)
    assert saved_while_measuring == [2, 3, 4, 5, 6, 7]
    with (tmp_path / "attention.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["milliseconds"] for line in table] == ["1", "1.3", "1.2", "0.9", "", "2"]
    assert (table[0]["unit"], table[0]["work"], table[0]["share"]) == ("TFLOP/s", "50", "0.5")
    assert (table[0]["gpu"], table[0]["copy_limit_gb_s"]) == ("none", "1000")
    assert table[0]["speedup"] == "0.9"
    assert table[0]["goal"] == "1.20x sdpa, goal 1.15x and share 0.50: met"
    assert [line["goal"] for line in table[1:]] == [""] * 5
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "attention.png").stat().st_size > 1000


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(interpreting(), reason="the interpreter does not compile")
def test_the_grid_replaces_rows_of_its_own_version_and_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One kernel, compiled for two labels and again: a row each, and a table that shows what changed."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import compile_grid

    path = tmp_path / "compiled.csv"
    only = ["--kernel", "forward", "--target", "sm_90", "--dtype", "bfloat16", "--d", "1152", "--output", str(path)]
    for label in ("before", "after", "after"):
        compile_grid.main([*only, "--label", label])
    assert "0 of 1 cases spill or do not fit" in capsys.readouterr().out
    rows = compile_grid.read(path)
    assert [(row["label"], row["op"], row["spilled"], row["tensors"]) for row in rows] == [
        ("before", "adaln", "0", "4"),
        ("after", "adaln", "0", "4"),
    ]
    registers, blocks = rows[1]["registers"], rows[1]["blocks"]
    assert int(registers) > 0
    assert int(blocks) > 0
    rows[0] |= {"registers": "255", "blocks": "1"}
    compile_grid.write(path, rows)
    compile_grid.main(["--table", "--output", str(path)])
    assert f"| 255 / 1 → {registers} / {blocks} | - |" in capsys.readouterr().out
