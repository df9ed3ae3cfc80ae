"""``python -m benchmarks.gpu [NAME …]``: store and retrieve on a GPU, and the link's limit in the same run.

Needs a CUDA device, numpy, torch, CuPy and rich. The engine is another process, as it is in life.
Each figure is printed as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.gpu import ctas, events, long, runs, slowdown, small, sums, unmapping
from benchmarks.gpu.sizes import FULL, QUICK, Sizes
from kernels.cuda.cupy_runtime import cuda_error

MEASUREMENTS: dict[str, Callable[[Sizes], Iterator[Figure]]] = {
    "runs": runs.measure,
    "small": small.measure,
    "sums": sums.measure,
    "slowdown": slowdown.measure,
    "long": long.measure,
    "ctas": ctas.measure,
    "unmapping": unmapping.measure,
    "events": events.measure,
}


def main() -> None:
    """Measure what is named, or everything."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--quick", action="store_true", help="very little of everything, to see that it runs")
    parser.add_argument("--results", type=Path, help="append each figure to this file, as a line of JSON")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in MEASUREMENTS:
            parser.error(f"there is no {name}; there are {', '.join(MEASUREMENTS)}")
    if reason := cuda_error():
        parser.exit(1, f"nothing to measure: {reason}\n")
    sizes = QUICK if arguments.quick else FULL
    for name in arguments.names or MEASUREMENTS:
        print(f"{name}:", flush=True)
        for figure in MEASUREMENTS[name](sizes):
            what, value, baseline, ratio, verdict = figure.cells()
            text = "; ".join(part for part in (value, baseline and f"baseline {baseline}", ratio, verdict) if part)
            print(f"  {what}: {text}", flush=True)
            if arguments.results is not None:
                with arguments.results.open("a") as lines:
                    print(json.dumps({"measurement": name, **facts_of(figure)}), file=lines)


def facts_of(figure: Figure) -> dict[str, Any]:
    """Return a figure with its medians, and whether it met its goal: None without a goal."""
    ratios = figure.ratios
    return {
        **asdict(figure),
        "median": statistics.median(figure.values),
        "baseline_median": statistics.median(figure.baseline_values) if figure.baseline_values else None,
        "ratio": statistics.median(ratios) if ratios else None,
        "goal": str(figure.goal) if figure.goal else None,
        "is_met": figure.goal.met(statistics.median(ratios or figure.values)) if figure.goal else None,
    }


if __name__ == "__main__":
    main()
