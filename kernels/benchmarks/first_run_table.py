"""Print what a first run has measured as Markdown, our time beside the best other one's; needs no GPU and no torch.

python kernels/benchmarks/first_run_table.py kernels/benchmarks/results/h200.csv
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "mmdit_kernels"
KEY = ("section", "op", "shape", "dtype", "direction")
Record = Mapping[str, Any]  # a row by column: of the CSV file, or of ``first_run_rows.Row``


def groups(rows: Iterable[Record]) -> Iterator[tuple[tuple[str, ...], list[Record], list[Record]]]:
    """Yield ``KEY`` of each piece of work that was timed, our rows of it (packed, compiled) and the others'."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        if row["milliseconds"] and row["section"] != "tuning":
            found.setdefault(tuple(row[field] for field in KEY), []).append(row)
    for key, timed in found.items():
        ours = [row for row in timed if row["implementation"].startswith(OURS)]
        mine = [row for row in ours if "alone" not in row["implementation"]]
        yield key, mine, [row for row in timed if row not in ours]


def best(rows: Sequence[Record]) -> Record:
    """Return the fastest."""
    return min(rows, key=lambda row: float(row["milliseconds"]))


def _title(names: Iterable[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def rate(row: Record) -> str:
    if row["tflop_s"]:
        return f"{float(row['tflop_s']):.0f} TFLOP/s"
    return f"{float(row['gb_s']) / 1e3:.2f} TB/s" if row["gb_s"] else ""


def timings(rows: Sequence[Record]) -> Iterator[str]:
    """Yield the table of times: the fastest of our ways (packed, compiled) against the fastest of the others."""
    yield "| | ours, ms | | best other, ms | | ratio |"
    yield "|---|---|---|---|---|---|"
    for key, mine, rest in groups(rows):
        title = _title(key[1:])
        if not mine and not rest:
            continue
        if key[1] == "copy":
            yield f"| a copy in memory | | | {float(rest[0]['milliseconds']):.3g} | {rate(rest[0])} | |"
            continue
        if not mine or not rest:
            missing = "ours was not measured" if not mine else "no other was measured"
            known = best(mine or rest)
            yield f"| {title} | {missing} | | {known['implementation']} {float(known['milliseconds']):.3g} | {rate(known)} | |"
            continue
        one, other = best(mine), best(rest)
        ratio = float(other["milliseconds"]) / float(one["milliseconds"])
        cells = (
            f"{float(one['milliseconds']):.3g}",
            rate(one),
            f"{other['implementation']} {float(other['milliseconds']):.3g}",
        )
        yield f"| {title} | {' | '.join(cells)} | {rate(other)} | {ratio:.2f} |"


def tiles(rows: Sequence[Record]) -> Iterator[str]:
    """Yield the table of tiles: those built in when it was measured against the fastest tried."""
    yield "| kernel | built in, ms | fastest tiles | ms | ratio |"
    yield "|---|---|---|---|---|"
    works: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        if row["section"] == "tuning" and row["milliseconds"]:
            works.setdefault((row["op"], row["shape"], row["dtype"]), []).append(row)
    for names, timed in works.items():
        start = next((row for row in timed if row["direction"] == "built in"), None)
        if start is None:  # it could not run
            continue
        found = best(timed)
        before, after = float(start["milliseconds"]), float(found["milliseconds"])
        yield f"| {_title(names)} | {before:.3g} | {found['direction']} | {after:.3g} | {before / after:.2f} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="first_run.csv")
    with parser.parse_args(arguments).file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    checks = [row for row in rows if row["verdict"] in ("met", "MISSED")]
    missed = [row for row in checks if row["verdict"] == "MISSED"]
    print(f"{len(checks)} checks, {len(missed)} missed")
    for row in missed:
        print(
            f"- {row['op']} {row['shape']} {row['dtype']} {row['direction']}: {row['error']}, PyTorch {row['theirs']}"
        )
    print("\n".join(["", *timings(rows), "", *tiles(rows)]))


if __name__ == "__main__":
    main()
