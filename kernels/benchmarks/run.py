"""Every benchmark, one after the other: prints and saves time, rate, share of the machine's limits, peak memory."""

from __future__ import annotations

import bench_adaln
import bench_attention
import bench_model
from harness import parser, report, require_gpu

BENCHMARKS = {"attention": bench_attention.run, "adaln": bench_adaln.run, "model": bench_model.run}


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), default=list(BENCHMARKS))
    chosen = options.parse_args(arguments)
    require_gpu()
    for name in chosen.only:
        report(name, BENCHMARKS[name](chosen), chosen.output)


if __name__ == "__main__":
    main()
