"""Print what a first run has measured as Markdown, our time beside the best other one's; needs no GPU and no torch.

python kernels/benchmarks/first_run_table.py kernels/benchmarks/results/h200.csv
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

OURS = "mmdit_kernels"
KEY = ("section", "op", "shape", "dtype", "direction")
Record = dict[str, str]


def groups(
    rows: list[Record], ours: str, others: tuple[str, ...]
) -> Iterator[tuple[list[str], list[Record], list[Record]]]:
    """Yield the name of each piece of work that was timed, our rows of it and the others'."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        if row["milliseconds"] and row["section"] != "tuning":
            found.setdefault(tuple(row[field] for field in KEY), []).append(row)
    for key, timed in found.items():
        mine = [row for row in timed if row["implementation"] in (ours, *others)]
        rest = [row for row in timed if not row["implementation"].startswith(OURS)]
        yield list(key[1:]), mine, rest


def best(rows: list[Record]) -> Record:
    return min(rows, key=lambda row: float(row["milliseconds"]))


def rate(row: Record) -> str:
    if row["tflop_s"]:
        return f"{float(row['tflop_s']):.0f} TFLOP/s"
    return f"{float(row['gb_s']) / 1e3:.2f} TB/s" if row["gb_s"] else ""


def timings(rows: list[Record]) -> Iterator[str]:
    """Yield the table of times: the fastest of our ways (packed, compiled) against the fastest of the others."""
    yield "| | ours, ms | | best other, ms | | ratio |"
    yield "|---|---|---|---|---|---|"
    for names, mine, rest in groups(rows, OURS, (f"{OURS} packed", f"{OURS} compiled")):
        title = ", ".join(name.replace("_", " ") for name in names)
        if not mine and not rest:
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


def tiles(rows: list[Record]) -> Iterator[str]:
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
        title = ", ".join(name.replace("_", " ") for name in names)
        yield f"| {title} | {before:.3g} | {found['direction']} | {after:.3g} | {before / after:.2f} |"


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
