"""Fuzzes a depot: ``python -m tests.fuzz --seed N --calls M``; the exit code is 1 if it found anything."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.fuzz.fuzzing import Options, fuzz
from tests.fuzz.sabotage import KINDS


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Run the fuzzer and print its report."""
    usual = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--calls", type=int, default=usual.calls, help="make the calls 0 to CALLS - 1 of the seed")
    parser.add_argument("--call", type=int, dest="only", help="make this one call alone")
    parser.add_argument("--server", default="", metavar="ADDRESS", help="a depot that runs; its state is not audited")
    parser.add_argument("--clients", type=int, default=usual.clients, help="1 keeps the calls in order")
    parser.add_argument("--most-bytes", type=int, default=usual.most_bytes, help="of a field that is made long")
    parser.add_argument("--latency-seconds", type=float, default=usual.latency_seconds, help="the witness may wait")
    parser.add_argument("--hold-seconds", type=float, default=usual.hold_seconds, help="of CPU time for the loop")
    parser.add_argument("--sabotage", choices=KINDS, default="none", help="put a fault into the depot")
    options = Options(**vars(parser.parse_args()))
    start = time.monotonic()
    report = asyncio.run(fuzz(options, _say))
    for line in report.lines():
        _say(line)
    num_calls = 1 if options.only is not None else options.calls
    seconds = time.monotonic() - start
    _say(f"seed {options.seed}, {num_calls} calls, {seconds:.1f} s, {len(report.findings)} kinds of findings")
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
