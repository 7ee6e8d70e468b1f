"""Compile the kernels ahead of time, with no GPU, with the triton that is imported, and save what the code needs, as CSV.

Install other versions of triton beside it: ``pip install --no-deps --target /tmp/triton-3.6 triton==3.6.0``, then
``PYTHONPATH=/tmp/triton-3.6:kernels:. python kernels/benchmarks/compile_grid.py``. Rows of a version (and label) that the file
has already are replaced. ``--table`` compiles nothing: it prints the file's rows of the XL/2 shapes as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmdit_kernels.compile_cases import GRID, JVP_GRID, TRIED, WORK, XL2, Case
from mmdit_kernels.launch import compile_ahead
from mmdit_kernels.testing import SHARED_MEMORY, Code, Resources, code, resources

RESULTS = Path(__file__).parent / "results" / "compiled.csv"
KEYS = ("label", "triton", "op", "kernel", "target", "dtype", "d", "features")
FIELDS = (*KEYS, "tiles", *Resources._fields, *Code._fields, "tensors", "matrix_products", "note")
FILTERS = ("kernel", "target", "dtype", "d", "features")
TILES = ("BLOCK_M", "BLOCK_N", "ROWS", "CHUNK", "PIECE", "num_warps", "num_stages", "maxnreg")


def describe(case: Case, label: str) -> dict[str, Any]:
    """Compile one case; a case that does not compile has a note and nothing else."""
    import triton

    version = ".".join(triton.__version__.split(".")[:2])
    values = (label, version, type(case).__name__.lower(), *case)
    row: dict[str, Any] = dict.fromkeys(FIELDS, "") | dict(zip(KEYS, values, strict=True))
    launch = case.launch()
    row["tiles"] = " ".join(f"{key}={launch.constants[key]}" for key in TILES if launch.constants.get(key))
    row["tensors"], row["matrix_products"] = WORK.get((row["op"], case.kernel), ("", ""))
    try:
        compiled = compile_ahead(launch, case.target)
    except Exception as error:  # what a version of the compiler cannot do is a result too
        return row | {"note": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    used = resources(compiled)
    row |= used._asdict() | code(compiled, used, case.target)._asdict()
    if used.shared > SHARED_MEMORY[case.target]:
        row["note"] = f"{used.shared} bytes of shared memory, of {SHARED_MEMORY[case.target]}"
    elif used.spilled:
        row["note"] = f"{used.spilled} bytes spilled"
    return row


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def table(rows: list[dict[str, str]]) -> Iterator[str]:
    """Yield lines of Markdown: kernels of sm_90 whose code differs between "before" and "after", or that are new, by version."""
    versions = sorted({row["triton"] for row in rows}, key=lambda version: [int(part) for part in version.split(".")])
    titles = [f"triton {version}" for version in versions]
    yield "| registers / blocks | " + " | ".join(titles) + " | waits | loads of 16 B | products | tensors |"
    yield "|---" * (len(versions) + 5) + "|"
    groups: dict[tuple[str, ...], dict[tuple[str, str], dict[str, str]]] = {}
    for row in rows:
        if row["target"] == "sm_90" and row["label"] in ("before", "after"):
            key = row["op"], row["kernel"], row["dtype"], row["d"], row["features"]
            groups.setdefault(key, {})[row["label"], row["triton"]] = row

    def change(
        found: dict[tuple[str, str], dict[str, str]], version: str, shown: Callable[[dict[str, str]], str]
    ) -> str:
        cells = [shown(found[label, version]) for label in ("before", "after") if (label, version) in found]
        return " → ".join(dict.fromkeys(cells))

    for (op, kernel, dtype, d, features), found in groups.items():
        cells = [change(found, version, lambda row: f"{row['registers']} / {row['blocks']}") for version in versions]
        last = max((version for _, version in found), key=versions.index)
        cells.append(change(found, last, lambda row: row["waits"].split(" ")[0] or "-"))
        cells.append(change(found, last, lambda row: f"{row['wide']} of {int(row['wide']) + int(row['narrow'])}"))
        is_new = all(label == "after" for label, _ in found)
        if is_new or any("→" in cell for cell in cells):
            more = "" if features in ("plain", "True") else f", {features}"
            end = found["after", last]
            title = f"{op} {kernel.replace('_', ' ')}, {d}, {dtype}{more}"
            yield " | ".join((f"| {title}", *cells, end["matrix_products"] or "-", f"{end['tensors']} |"))


def selected(options: argparse.Namespace) -> list[Case]:
    cases: list[Case] = XL2 if options.grid == "xl2" else [*GRID, *JVP_GRID]
    for place, field in enumerate(FILTERS):
        wanted = getattr(options, field)
        cases = [case for case in cases if wanted is None or str(case[place]) in wanted]
    return cases


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", choices=["xl2", "whole"], default="xl2", help="XL/2's shapes, or all (hours)")
    parser.add_argument("--label", default="after", help='a name for the state of the code, as "before"')
    parser.add_argument("--output", type=Path, default=RESULTS, help="the CSV file")
    parser.add_argument("--table", action="store_true", help="print the file as Markdown, and compile nothing")
    for field in FILTERS:
        parser.add_argument(f"--{field}", nargs="+", help="only these")
    options = parser.parse_args(arguments)
    if options.table:
        print("\n".join(table(read(options.output))))
        return
    try:
        import triton
    except ImportError:
        print("error: this script needs triton, which is not installed", file=sys.stderr)
        raise SystemExit(2) from None
    rows: list[dict[str, Any]] = list(read(options.output))
    version = ".".join(triton.__version__.split(".")[:2])
    if version not in TRIED:
        print(f"triton {version}: the tiles were chosen with {', '.join(TRIED)}")
    bad = 0
    for case in selected(options):
        row = describe(case, options.label)
        key = [str(row[field]) for field in KEYS]
        rows = [other for other in rows if [str(other[field]) for field in KEYS] != key]
        rows.append(row)
        bad += bool(row["note"])
        seen = ("registers", "spilled", "shared", "blocks", "waits", "note")
        print(*(row[key] for key in KEYS[1:]), row["tiles"], *(f"{key}={row[key]}" for key in seen), flush=True)
        write(options.output, rows)
    print(f"{bad} of {len(selected(options))} cases spill or do not fit; saved in {options.output}")


if __name__ == "__main__":
    main()
