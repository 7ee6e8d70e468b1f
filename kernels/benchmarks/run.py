"""Every benchmark, one after the other: prints and saves time, rate, share of the machine's limits, peak memory."""

from __future__ import annotations

import bench_adaln
import bench_attention
import bench_model
from harness import parser, report, require_gpu

BENCHMARKS = {"attention": bench_attention, "adaln": bench_adaln, "model": bench_model}


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), default=list(BENCHMARKS))
    bench_attention.add_options(options)
    chosen = options.parse_args(arguments)
    require_gpu()
    for name in chosen.only:
        report(name, BENCHMARKS[name].run(chosen), BENCHMARKS[name].GOALS, chosen.output)


if __name__ == "__main__":
    main()
