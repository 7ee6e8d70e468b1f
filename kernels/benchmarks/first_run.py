"""The first minutes on a GPU, in this order: are the kernels right, are they faster, what do other tiles give, and the model.

    PYTHONPATH=.:kernels python kernels/benchmarks/first_run.py --minutes 9 --output DIR
    PYTHONPATH=.:kernels python kernels/benchmarks/first_run.py --minutes 9 --output DIR --wheels FOLDER

It needs torch and triton. Every row is saved when it is there (first_run.csv, first_run.json), so a run that is cut short leaves
what it has. A section that raises is recorded and the next one runs, in a new process where the error has left the GPU unusable.
``--wheels`` runs the model's step alone, with the wheels of that folder (diffusers and what it needs) unpacked on the path.
``--rehearse`` runs all of it at toy sizes on the CPU, in Triton's interpreter: its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from first_run_rows import Report, Row, Sizes

# Share of the time by whose end a section stops; what one does not need is left to those after it.
SHARES = {
    "correctness": 0.20,
    "attention": 0.38,
    "adaln": 0.48,
    "jvp": 0.56,
    "tuning": 0.70,
    "attention tuned": 0.77,
    "adaln tuned": 0.80,
    "jvp tuned": 0.83,
    "block": 0.92,
    "step": 1.0,
}


def rows_of(section: str, sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Yield the rows of a section; what it needs is imported here, so that no section can keep another from running."""
    if section == "correctness":
        return importlib.import_module("first_run_checks").correctness(sizes)  # type: ignore[no-any-return]
    if section == "tuning":
        return importlib.import_module("first_run_tune").tuning_rows(sizes, section, folder / "tiles.json")  # type: ignore[no-any-return]
    if section in ("block", "step"):
        build: Callable[..., Any] = getattr(importlib.import_module("first_run_model"), f"{section}_rows")
        return build(sizes, section)  # type: ignore[no-any-return]
    op, _, tuned = section.partition(" ")
    build = getattr(importlib.import_module("first_run_timing"), f"{op}_rows")
    return build(sizes, section, **({"few": True} if tuned and op != "jvp" else {}))  # type: ignore[no-any-return]


def unusable() -> bool:
    """Tell whether an error has left this process's GPU unusable."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def run_section(section: str, until: float, report: Report, sizes: Sizes) -> None:
    """Run one section until it ends, its time is over or it raises; a section that had no time is said to be skipped."""
    begin = time.time()
    state: dict[str, Any] = {"status": "skipped: out of time", "seconds": 0.0, "rows": 0}
    report.sections[section] = state
    if begin < until:
        state["status"] = "unfinished"
        print(f"== {section}: {until - begin:.0f} s", flush=True)
        try:
            for row in rows_of(section, sizes, report.folder):
                report.add(row)
                state["rows"] += 1
                if time.time() > until:
                    state["status"] = "stopped: out of time"
                    break
            else:
                state["status"] = "done"
        except Exception as error:
            text = str(error).strip().splitlines()
            state["status"] = f"failed: {type(error).__name__}: {text[0] if text else ''}"
            state["traceback"] = traceback.format_exc()
        except KeyboardInterrupt:
            state["status"] = "interrupted"
            report.save()
            raise
    state["seconds"] = round(time.time() - begin, 1)
    print(f"== {section}: {state['status']}, {state['seconds']} s", flush=True)
    report.save()


def summary(report: Report) -> Iterator[str]:
    """Yield the lines to read first: what is wrong, and how our time compares with the best other one."""
    from first_run_table import best, groups

    checks = [row for row in report.rows if row.verdict in ("met", "MISSED")]
    missed = [row for row in checks if row.verdict == "MISSED"]
    yield f"{len(checks)} checks, {len(missed)} missed"
    for row in missed:
        yield f"  MISSED {row.op} {row.shape} {row.dtype} {row.direction}: {row.error} of {row.bound} {row.note}"
    for section, state in report.sections.items():
        if state["status"] != "done":
            yield f"  {section}: {state['status']}"
    for key, mine, others in groups(map(asdict, report.rows)):
        if mine and others:
            ours, other = best(mine), best(others)
            ratio = other["milliseconds"] / ours["milliseconds"]
            yield f"  {' '.join(key)}: {ours['milliseconds']:.3f} ms, {ratio:.2f}x of {other['implementation']}"


def environment(rehearse: bool) -> dict[str, str]:
    from harness import environment as of_gpu
    from mmdit_kernels.dispatch import triton_version

    if rehearse:
        return {"gpu": "none: a rehearsal on the CPU", "torch": torch.__version__, "triton": triton_version() or ""}
    return of_gpu()


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="what the whole run may take")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=list(SHARES), help="only these sections")
    parser.add_argument("--wheels", type=Path, help="folder of wheels: run the model's step alone, with diffusers")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--continue", dest="resume", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}: give more than 0")
    if options.wheels is not None and not list(options.wheels.glob("*.whl")):
        parser.error(f"--wheels {options.wheels}: this folder has no wheel")
    return options


def unpack(wheels: Path, folder: Path) -> None:
    """Unpack the wheels beside the results and put them first on the path."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    from first_run_rows import GPU, REHEARSAL, Report
    from harness import require_gpu, require_triton

    if options.rehearse:
        require_triton()
        from mmdit_kernels.testing import patch_language_once

        patch_language_once()
    else:
        require_gpu()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: --output {options.output} cannot be a folder: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    os.environ["MMDIT_KERNELS_TUNED"] = str(options.output / "tiles.json")  # written by the tuning, read after it
    sizes = REHEARSAL if options.rehearse else GPU
    if options.resume:
        report = Report.load(options.output)
    else:
        (options.output / "tiles.json").unlink(missing_ok=True)
        report = Report(options.output, environment(options.rehearse), time.time(), options.minutes)
    print(", ".join(f"{key} {value}" for key, value in report.environment.items()), flush=True)
    wanted = options.only or (("step",) if options.wheels else SHARES)
    sections = [section for section in SHARES if section in wanted]
    if options.wheels is not None:
        unpack(options.wheels, options.output / "wheels")
    whole = max(SHARES[section] for section in sections)
    for section in sections:
        if section in report.sections:
            continue
        until = report.started + 60 * report.minutes * SHARES[section] / whole
        try:
            run_section(section, until, report, sizes)
        except KeyboardInterrupt:
            print("\n".join(summary(report)))
            print(f"interrupted: saved what there is in {options.output / 'first_run.csv'} and .json", flush=True)
            raise SystemExit(130) from None
        if unusable():
            again = sys.argv[1:] if arguments is None else arguments
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, __file__, *again, *([] if options.resume else ["--continue"])])
    print("\n".join(summary(report)))
    print(f"saved {options.output / 'first_run.csv'} and .json", flush=True)


if __name__ == "__main__":
    main()
