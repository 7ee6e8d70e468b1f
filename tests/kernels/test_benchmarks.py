"""With no GPU every benchmark leaves with 2 and one clear line."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

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
