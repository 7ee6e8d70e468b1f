"""The table and the picture of written results; nothing is trained."""

from __future__ import annotations

import csv
import math
import statistics

import pytest
from PIL import Image

from mmdit.cli.ablation_figures import read_all
from mmdit.cli.common.ablation_report import ablation_report
from mmdit.cli.common.ablation_results import FIRST
from mmdit.errors import UserError
from mmdit.metrics.learning_curves import curves_of

COLUMNS = ("understanding_depth_abs_rel", "generation_frechet_distance")


def write(path, runs, columns=COLUMNS):
    """``runs``: (variant, seed, max_steps, [(step, processor seconds, measure, …), …]) each; 100 samples a step."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*FIRST, *columns])
        for variant, seed, max_steps, points in runs:
            for step, seconds, *values in points:
                writer.writerow(
                    [variant, f"the {variant}", seed, step, max_steps, 100 * step, seconds, 2 * seconds, *values]
                )


RUNS = [
    ("base", 0, 40, [(20, 100, 0.05, 90), (40, 200, 0.03, 70)]),
    ("base", 1, 40, [(20, 110, 0.06, 80), (40, 220, 0.02, 66)]),
    ("fast", 0, 40, [(20, 50, 0.04, 100), (40, 100, 0.024, 60)]),
    ("half", 0, 20, [(10, 60, 0.09, 99), (20, 120, 0.05, 91)]),
    ("open", 0, 40, [(20, 90, 0.01, 5)]),
]


def line(report, part, title):
    """The cells of one line in the table that follows ``part``."""
    found = next(row for row in report.split(part)[1].splitlines() if row.startswith(f"| {title} "))
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


def test_tables(mmdit, tmp_path):
    write(tmp_path / "ablation.csv", RUNS)
    result = mmdit("ablation-figures", "ablation.csv", "--output", "figures", "--goal", 0.04)
    assert result.code == 0, result.err
    assert Image.open(tmp_path / "figures/ablation.png").width > 900
    report = (tmp_path / "figures/ablation.md").read_text(encoding="utf-8")
    assert "Not finished, and left out: open (seed 0)." in report
    assert "the open" not in report

    deviation = statistics.stdev([0.03, 0.02])
    end = line(report, "At the end", "the base")
    assert end == ["2", "4,000", "210", f"0.0250 ± {deviation:.4f}", f"68.0 ± {statistics.stdev([70, 66]):.1f}"]
    assert line(report, "At the end", "the half") == ["1", "2,000", "120", "0.0500", "91.0"]
    # 2,000 samples are the fewest: a point of all
    assert line(report, "after 2,000 samples", "the base")[3] == f"0.0550 ± {statistics.stdev([0.05, 0.06]):.4f}"
    assert line(report, "after 2,000 samples", "the fast")[3:] == ["0.0400", "100.0"]
    # 100 processor seconds are the fewest: one run of base begins there, the other after it
    assert line(report, "after 100 processor seconds", "the base")[3] == "0.0500 (1 of 2)"
    assert line(report, "after 100 processor seconds", "the fast")[3] == "0.0240"
    share = math.log(100 / 60) / math.log(120 / 60)
    assert line(report, "after 100 processor seconds", "the half")[3] == f"{0.09 - 0.04 * share:.4f}"
    # base: halfway in the logarithm from 0.05 to 0.03, and from 0.06 to 0.02
    both = [2000 * 2**0.5, 2000 * 2**0.5]
    assert line(report, "takes to AbsRel", "the base")[0] == f"{statistics.mean(both):,.0f} ± 0"
    assert line(report, "takes to AbsRel", "the fast") == ["≤ 2,000", "≤ 50"]
    assert line(report, "takes to AbsRel", "the half")[0] == "not reached by 1 of 1"


def test_several_files_are_one_table(tmp_path):
    write(tmp_path / "one.csv", RUNS[:2])
    write(tmp_path / "two.csv", RUNS[2:3])
    report = ablation_report(curves_of(read_all([tmp_path / "one.csv", tmp_path / "two.csv"])), 0.03, "wall_seconds")
    assert line(report, "At the end", "the fast")[2] == "200"
    assert line(report, "At the end", "the base")[2] == "420"
    with pytest.raises(UserError, match=r"one.csv: 'base' with seed 0 is in .*one.csv too: give one of them"):
        read_all([tmp_path / "one.csv"] * 2)


def test_before_any_run_is_finished(tmp_path):
    write(tmp_path / "ablation.csv", RUNS[4:])
    report = ablation_report(curves_of(read_all([tmp_path / "ablation.csv"])), 0.03, "processor_seconds")
    assert report == "No run is finished yet. Not finished, and left out: open (seed 0).\n"


HEAD = ",".join(FIRST) + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "ablation.csv: no such file"),
        ("", "not a table of 'mmdit ablate'"),
        ("variant,seed\na,many\n", "not a table of 'mmdit ablate'"),
        (f"{HEAD}a,A,0,1,1,4,1,1\na,A,0,1,1,4,2,2\n", "('a', seed 0, step 1 stands twice)"),
        (f"{HEAD}a,A,0,1,1,0,1,1\n", "('a', seed 0, step 1: samples is 0)"),
        (f"{HEAD}a,A,0,1,1,4,nan,1\n", "('a', seed 0, step 1: processor_seconds is nan)"),
    ],
)
def test_what_is_refused(mmdit, tmp_path, text, expected):
    if text is not None:
        (tmp_path / "ablation.csv").write_text(text)
    result = mmdit("ablation-figures", "ablation.csv", "--output", "figures")
    assert result.code == 2
    assert expected in result.error
    assert not (tmp_path / "figures").exists()
