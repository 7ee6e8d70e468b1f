from __future__ import annotations

import csv
import io
import json

import pytest
from PIL import Image

from mmdit.cli.common.charts import sweep_chart
from mmdit.cli.demo import EXAMPLES
from mmdit.cli.sweep import read_table, summarize
from mmdit.errors import UserError


@pytest.fixture
def command(tiny_pipeline_dir):
    return ("sweep", "--data", EXAMPLES, "--output", "sweep", "--model", tiny_pipeline_dir, "--num_samples", 2,
            "--steps", "[1,2]", "--schedulers", "[euler,euler_maruyama]", "--tasks", "[understanding,generation]")  # fmt: skip


def test_sweep_goes_on_where_it_was_stopped(mmdit, command, tmp_path):
    result = mmdit(*command)
    assert result.code == 0, result.err
    assert "understanding, depth_abs_rel:" in result.out
    table = tmp_path / "sweep" / "sweep.csv"
    whole = read_table(table)
    assert [(row["task"], row["scheduler"], row["num_inference_steps"]) for row in whole] == [
        (task, scheduler, steps)
        for task in ("generation", "understanding")
        for scheduler in ("euler", "euler_maruyama")
        for steps in (1, 2)
    ]
    assert Image.open(tmp_path / "sweep" / "sweep.png").size[0] > 300
    summary = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert summary["settings"]["num_samples"] == 2
    assert summary["understanding_in_one_step"]["depth_abs_rel"]["one_step"] == whole[4]["depth_abs_rel"]

    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:4], *lines[5:]]) + "\n")  # one line lost
    kept = table.read_text().splitlines()
    result = mmdit(*command)
    assert result.code == 0, result.err
    assert "7 lines are there and are kept" in result.err
    assert next(line for line in result.out.splitlines() if "s an image" in line).startswith("6/8 generation euler_m")
    again = table.read_text().splitlines()
    assert [*again[:4], *again[5:]] == kept
    new, old = (dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in (again[4], lines[4]))
    assert {k: v for k, v in new.items() if k != "seconds_per_image"} == {
        k: v for k, v in old.items() if k != "seconds_per_image"
    }

    result = mmdit(*command, "--seed", 1)
    assert result.code == 2
    assert "seed was 0, now 1" in result.error
    (tmp_path / "sweep" / "sweep.json").unlink()
    assert "choose another --output" in mmdit(*command).error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data", "nowhere"), "--data nowhere: no such folder"),
        (("--schedulers", "[eular]"), "unknown scheduler 'eular': did you mean 'euler'"),
        (("--schedulers", "[euler,flow_map]"), "scheduler flow_map takes the steps that a model with a second time"),
        (("--tasks", "[generate]"), "unknown task 'generate'"),
        (("--steps", "[0]"), "--steps is [0]: give 1 to 10000"),
        (("--num_samples", "0"), "--num_samples is 0"),
        (("--condition", "rgb"), "unknown condition of the sweep 'rgb'"),
    ],
)
def test_sweep_refuses(mmdit, command, arguments, expected):
    result = mmdit(*command, *arguments)
    assert result.code == 2
    assert expected in result.error


def row(task, scheduler, steps, **values):
    return {"task": task, "scheduler": scheduler, "num_inference_steps": steps, **values}


def test_summary_by_hand():
    rows = [
        row("understanding", "euler_maruyama", 1, depth_abs_rel=0.5, segmentation_miou=0.1),
        row("understanding", "euler", 1, depth_abs_rel=0.105, segmentation_miou=0.4),
        row("understanding", "heun", 5, depth_abs_rel=0.1, segmentation_miou=0.5),
        row("understanding", "euler", 5, depth_abs_rel=0.1, segmentation_miou=float("nan")),
        row("generation", "euler", 5, frechet_distance=7.0),
    ]
    summary = summarize(rows)
    assert summary["best"]["understanding"]["depth_abs_rel"]["value"] == 0.1
    assert summary["best"]["generation"] == {
        "frechet_distance": {"value": 7.0, "scheduler": "euler", "num_inference_steps": 5}
    }
    depth, labels = (summary["understanding_in_one_step"][name] for name in ("depth_abs_rel", "segmentation_miou"))
    assert depth["loss"] == pytest.approx(0.05)  # 0.105 for 0.1
    assert depth["within_tolerance"]
    assert labels["loss"] == pytest.approx(0.2)  # 0.4 for 0.5
    assert (labels["best_scheduler"], labels["best_steps"], labels["within_tolerance"]) == ("heun", 5, False)


def test_chart_of_one_row_and_of_none():
    for rows in ([], [row("generation", "euler", 5, frechet_distance=7.0)]):
        picture = Image.open(io.BytesIO(sweep_chart(rows, "1 sample")))
        assert picture.format == "PNG"
        assert len(picture.getcolors(1 << 24)) > 1


def test_a_table_of_something_else(tmp_path):
    path = tmp_path / "sweep.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["task", "steps"], ["generation", "many"]])
    with pytest.raises(UserError, match="not a table of this command"):
        read_table(path)
